"""Residual log-likelihood against its formula, and the joints that count more."""

import math

import pytest
import torch
from torch import Tensor

from posefoundry.models.flow import RealNVP
from posefoundry.skeleton import COCO_KEYPOINT_NAMES
from posefoundry.training.losses.likelihood import joint_weights, residual_log_likelihood


def test_joints_are_found_by_their_names() -> None:
    weights = dict(zip(COCO_KEYPOINT_NAMES, joint_weights(COCO_KEYPOINT_NAMES).tolist(), strict=True))
    more = {name: weight for name, weight in weights.items() if weight != 1}
    assert more == pytest.approx(
        {f"{side}_{joint}": w for side in ("left", "right") for joint, w in
         (("elbow", 1.2), ("wrist", 1.5), ("knee", 1.2), ("ankle", 1.5))}
    )  # fmt: skip
    assert joint_weights(["rightWrist", "Knee-L", "tail", "kpt_3"]).tolist() == pytest.approx([1.5, 1.2, 1, 1])


def test_equals_the_formula_by_hand() -> None:
    flow = RealNVP()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()  # the identity: a standard normal density remains
    loss = residual_log_likelihood(torch.tensor([[1.0, -0.5]]), torch.zeros(1, 2), flow)
    # sigma = 0.5, errors = (2, -1): log density = -(4 + 1) / 2 - log(2 pi)
    log_density = -2.5 - math.log(2 * math.pi)
    expected = [math.log(0.5) - log_density + math.log(1.0) + error for error in (2, 1)]
    assert loss[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("logit", [-1000.0, 1000.0])
def test_extreme_sigmas_keep_loss_and_gradient_finite(logit: float) -> None:
    torch.manual_seed(0)
    error: Tensor = torch.tensor([[1e4, 0.0]], requires_grad=True)
    logits = torch.full((1, 2), logit, requires_grad=True)
    flow = RealNVP()
    residual_log_likelihood(error, logits, flow).sum().backward()
    gradients = [error.grad, logits.grad, *(parameter.grad for parameter in flow.parameters())]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_flow_begins_next_to_the_identity() -> None:
    torch.manual_seed(0)
    points = torch.tensor([[0.0, 0.0], [1.0, -2.0], [50.0, 50.0]])
    normal = -0.5 * points.square().sum(1) - math.log(2 * math.pi)
    torch.testing.assert_close(RealNVP().log_prob(points), normal, rtol=0.6, atol=0.5)
