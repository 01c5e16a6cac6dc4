"""Batches and augmentation, assignment, losses, the loop, distribution."""
