"""The losses of yolov8 and yolo11 against the published ones, and against themselves over split batches."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from posefoundry.config import LossGains
from posefoundry.models import HeadOutput
from posefoundry.skeleton import COCO_SIGMAS
from posefoundry.training.losses.criterion import Weights
from posefoundry.training.losses.yolov8 import Yolov8Criterion


def criterion(**changes: object) -> Yolov8Criterion:
    arguments = {
        "kpt_shape": (17, 3),
        "sigmas": COCO_SIGMAS,
        "strides_px": (8, 16, 32),
        "gains": LossGains(),
        "weights": Weights(None, torch.ones(17)),
    }
    return Yolov8Criterion(**(arguments | changes))


@pytest.mark.parametrize("model", ["yolov8n-pose", "yolo11n-pose"])
def test_five_terms_equal_the_published(published: Callable, model: str) -> None:
    # Origin of the numbers: the published package, version 8.4.190, on CPU in float32.
    output, batch, expected = published(model)
    loss = criterion()(output, batch)
    assert list(loss.terms) == list(criterion().terms)
    for name, term in loss.terms.items():
        assert term.item() == pytest.approx(expected[f"{name}_loss"].item(), rel=1e-3), name
    assert loss.total.item() == pytest.approx(expected["total"].sum().item(), rel=1e-3)


def test_shares_of_two_processes_add_up_to_the_loss_of_one(published: Callable, halves: Callable) -> None:
    output, batch, _ = published("yolov8n-pose")
    whole = criterion()(output, batch)
    counts: list[Tensor] = []

    def remember(local: Tensor) -> Tensor:
        counts.append(local)
        return local

    for part in halves(output, batch):
        criterion(sum_over_processes=remember)(*part)
    of_both = torch.stack(counts).sum(0)
    shares = [criterion(sum_over_processes=lambda _: of_both)(*part) for part in halves(output, batch)]
    assert sum(share.total.item() for share in shares) == pytest.approx(whole.total.item(), rel=1e-5)


def test_images_without_persons_teach_only_the_class(published: Callable, nobody: Callable) -> None:
    output, batch, _ = published("yolov8n-pose")
    loss = criterion()(output, nobody(batch))
    assert loss.n_positive_anchors == 0
    assert {name for name, term in loss.terms.items() if term > 0} == {"cls"}


def test_keypoints_without_visibility_have_no_visibility_loss(published: Callable) -> None:
    output, batch, _ = published("yolov8n-pose")
    raw_xy = output.keypoints.view(2, 17, 3, -1)[:, :, :2].reshape(2, 34, -1)
    two_values = HeadOutput(
        boxes=output.boxes,
        scores=output.scores,
        keypoints=raw_xy,
        anchor_points_xy=output.anchor_points_xy,
        anchor_strides_px=output.anchor_strides_px,
    )
    with_visibility = criterion()(output, batch)
    without = criterion(kpt_shape=(17, 2))(two_values, batch)
    assert without.terms["kobj"] == 0
    assert without.terms["pose"].item() == pytest.approx(with_visibility.terms["pose"].item(), rel=1e-6)
