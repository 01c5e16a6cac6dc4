"""The losses against the published ones, and against themselves when a batch is split over processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from posefoundry.config import LossGains
from posefoundry.models import HeadOutput
from posefoundry.skeleton import COCO_SIGMAS
from posefoundry.training.batch import Batch
from posefoundry.training.losses import LOSS_TERMS, PoseCriterion

PARITY = Path(__file__).parents[2].parent / "shared" / "parity"
HEIGHT, WIDTH = 96, 128
STRIDES = (8, 16, 32)


def anchors() -> tuple[Tensor, Tensor]:
    points, strides = [], []
    for stride in STRIDES:
        y, x = torch.meshgrid(torch.arange(HEIGHT // stride) + 0.5, torch.arange(WIDTH // stride) + 0.5, indexing="ij")
        points.append(torch.stack([x, y], -1).reshape(-1, 2))
        strides.append(torch.full((len(points[-1]), 1), float(stride)))
    return torch.cat(points), torch.cat(strides)


def published(model: str) -> tuple[HeadOutput, Batch, dict[str, Tensor]]:
    """One training batch of the published package: raw head outputs, targets, losses."""
    path = PARITY / f"{model}.npz"
    if not path.exists():
        pytest.skip(f"reference tensors {path.name} are not beside the repository")
    arrays = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    points, strides = anchors()
    output = HeadOutput(
        boxes=arrays["train.boxes"],
        scores=arrays["train.scores"],
        keypoints=arrays["train.kpts"],
        anchor_points_xy=points,
        anchor_strides_px=strides,
    )
    size_wh = torch.tensor([WIDTH, HEIGHT])
    centre, half = arrays["batch.bboxes"][:, :2] * size_wh, arrays["batch.bboxes"][:, 2:] * size_wh / 2
    keypoints = arrays["batch.keypoints"].clone()
    keypoints[..., :2] *= size_wh
    batch = Batch(
        images=arrays["batch.img"],
        class_ids=torch.zeros(2, 3, dtype=torch.int64),
        boxes_xyxy=torch.cat([centre - half, centre + half], -1).view(2, 3, 4),
        keypoints_xyv=keypoints.view(2, 3, 17, 3),
        is_person=torch.ones(2, 3, dtype=torch.bool),
    )
    return output, batch, {name.removeprefix("loss."): a for name, a in arrays.items() if name.startswith("loss.")}


def criterion(**changes: object) -> PoseCriterion:
    arguments = {
        "n_classes": 1,
        "kpt_shape": (17, 3),
        "sigmas": COCO_SIGMAS,
        "strides_px": STRIDES,
        "gains": LossGains(),
    }
    return PoseCriterion(**(arguments | changes))


@pytest.mark.parametrize("model", ["yolov8n-pose", "yolo11n-pose"])
def test_five_terms_equal_the_published(model: str) -> None:
    # Origin of the numbers: the published package, version 8.4.190, on CPU in float32; see shared/parity/README.md.
    output, batch, expected = published(model)
    loss = criterion()(output, batch)
    for name in LOSS_TERMS:
        assert loss.terms[name].item() == pytest.approx(expected[f"{name}_loss"].item(), rel=1e-3), name
    assert loss.total.item() == pytest.approx(expected["total"].sum().item(), rel=1e-3)


def halves(output: HeadOutput, batch: Batch) -> list[tuple[HeadOutput, Batch]]:
    parts = []
    for rows in (slice(0, 1), slice(1, 2)):
        part = HeadOutput(
            boxes=output.boxes[rows],
            scores=output.scores[rows],
            keypoints=output.keypoints[rows],
            anchor_points_xy=output.anchor_points_xy,
            anchor_strides_px=output.anchor_strides_px,
        )
        columns = ("images", "class_ids", "boxes_xyxy", "keypoints_xyv", "is_person")
        parts.append((part, Batch(**{name: getattr(batch, name)[rows] for name in columns})))
    return parts


def test_shares_of_two_processes_add_up_to_the_loss_of_one() -> None:
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


def test_images_without_persons_teach_only_the_class() -> None:
    output, batch, _ = published("yolov8n-pose")
    empty = Batch(
        images=batch.images,
        class_ids=batch.class_ids[:, :1],
        boxes_xyxy=torch.zeros(2, 1, 4),
        keypoints_xyv=torch.zeros(2, 1, 17, 3),
        is_person=torch.zeros(2, 1, dtype=torch.bool),
    )
    loss = criterion()(output, empty)
    assert loss.n_positive_anchors == 0
    assert {name for name, term in loss.terms.items() if term > 0} == {"cls"}


def test_keypoints_without_visibility_have_no_visibility_loss() -> None:
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
