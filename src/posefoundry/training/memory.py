"""What is told where a GPU's memory does not hold the training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from posefoundry.errors import PosefoundryError

# Of what CUDA's libraries could not allocate by themselves.
SIGNS = ("CUDA error: out of memory", "_STATUS_ALLOC_FAILED", "Cuda failure 2 'out of memory'")


@contextmanager
def told_when_short(device: torch.device, n_images: int) -> Iterator[None]:
    """Turns PyTorch's fault of a block into one that names the remedies.

    Args:
        device: What the block computes on.
        n_images: That it learns from at a time.

    Raises:
        PosefoundryError: The device has too little memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in SIGNS):
            raise
        cause = str(error).strip().partition(". See documentation")[0]
        raise PosefoundryError(
            f"{device} has too little memory for batches of {n_images} images a process. Lower train.batch_size, or "
            "set it to auto; a smaller train.image_size_px or train.model needs less too. Where only little is "
            "missing, PYTORCH_ALLOC_CONF=expandable_segments:True in the environment may do, and the training goes on "
            f"from its last checkpoint. PyTorch says: {cause}"
        ) from None
