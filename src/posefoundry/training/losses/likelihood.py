"""Residual log-likelihood of keypoints (RLE, Li et al. 2021, arXiv:2107.11291)."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from posefoundry.models.flow import RealNVP

# The published weights by joint: what moves most counts most.
JOINT_WEIGHTS = {"elbow": 1.2, "knee": 1.2, "wrist": 1.5, "ankle": 1.5}
MAX_STANDARD_ERRORS = 100.0
MIN_SIGMA = 1e-6  # where the sigmoid underflows, so that neither the loss nor its gradient is infinite


def joint_weights(keypoint_names: Sequence[str]) -> Tensor:
    """Returns (K,) weights by the words in the names (`left_elbow`, `rightKnee`, `Wrist-L`); 1 for other keypoints."""
    joints = [re.search("|".join(JOINT_WEIGHTS), name.lower()) for name in keypoint_names]
    return torch.tensor([JOINT_WEIGHTS[joint.group()] if joint else 1.0 for joint in joints])


def residual_log_likelihood(error_xy: Tensor, sigma_logits: Tensor, flow: RealNVP) -> Tensor:
    """Returns (N, 2) negative log-likelihoods of N keypoints' coordinates.

    The residual distribution is a Laplace density times the flow's, both of the error in standard deviations.

    Args:
        error_xy: (N, 2) prediction minus truth, in strides.
        sigma_logits: (N, 2); the standard deviations, in strides, are their sigmoids.
        flow: The density of standard errors.
    """
    sigmas = sigma_logits.sigmoid().clamp(min=MIN_SIGMA)
    errors = (error_xy / sigmas).clamp(-MAX_STANDARD_ERRORS, MAX_STANDARD_ERRORS)
    log_density = flow.log_prob(errors)[:, None]
    return sigmas.log() - log_density + (2 * sigmas).log() + errors.abs()
