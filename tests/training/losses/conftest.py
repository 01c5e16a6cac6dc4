"""One training batch of the published package: raw head outputs, targets and losses."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from posefoundry.models import HeadOutput
from posefoundry.training.batch import Batch

PARITY = Path(__file__).parents[3].parent / "shared" / "parity"
HEIGHT, WIDTH = 96, 128
STRIDES = (8, 16, 32)

Reference = tuple[HeadOutput, Batch, dict[str, Tensor]]


def _anchors() -> tuple[Tensor, Tensor]:
    points, strides = [], []
    for stride in STRIDES:
        y, x = torch.meshgrid(torch.arange(HEIGHT // stride) + 0.5, torch.arange(WIDTH // stride) + 0.5, indexing="ij")
        points.append(torch.stack([x, y], -1).reshape(-1, 2))
        strides.append(torch.full((len(points[-1]), 1), float(stride)))
    return torch.cat(points), torch.cat(strides)


def _output(arrays: dict[str, Tensor], prefix: str) -> HeadOutput:
    points, strides = _anchors()
    return HeadOutput(
        boxes=arrays[f"{prefix}.boxes"],
        scores=arrays[f"{prefix}.scores"],
        keypoints=arrays[f"{prefix}.kpts"],
        anchor_points_xy=points,
        anchor_strides_px=strides,
        keypoint_sigmas=arrays.get(f"{prefix}.kpts_sigma"),
    )


@pytest.fixture(scope="session")
def published() -> Callable[[str], Reference]:
    """Reads a model's reference tensors; losses by name without prefix. Skips where they are not at hand."""

    def read(model: str) -> Reference:
        path = PARITY / f"{model}.npz"
        if not path.exists():
            pytest.skip(f"reference tensors {path.name} are not beside the repository")
        arrays = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
        two_heads = "train.one2one.boxes" in arrays
        output = _output(arrays, "train.one2many" if two_heads else "train")
        if two_heads:
            output.one_to_one = _output(arrays, "train.one2one")
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
        losses = {name.removeprefix("loss."): a for name, a in arrays.items() if name.startswith("loss.")}
        return output, batch, losses

    return read


@pytest.fixture(scope="session")
def halves() -> Callable[[HeadOutput, Batch], list[tuple[HeadOutput, Batch]]]:
    """Splits a batch of two images into what two processes would see."""

    def of_output(output: HeadOutput, rows: slice) -> HeadOutput:
        return HeadOutput(
            boxes=output.boxes[rows],
            scores=output.scores[rows],
            keypoints=output.keypoints[rows],
            anchor_points_xy=output.anchor_points_xy,
            anchor_strides_px=output.anchor_strides_px,
            keypoint_sigmas=None if output.keypoint_sigmas is None else output.keypoint_sigmas[rows],
            one_to_one=None if output.one_to_one is None else of_output(output.one_to_one, rows),
        )

    def split(output: HeadOutput, batch: Batch) -> list[tuple[HeadOutput, Batch]]:
        return [
            (of_output(output, rows), Batch(**{f.name: getattr(batch, f.name)[rows] for f in fields(batch)}))
            for rows in (slice(0, 1), slice(1, 2))
        ]

    return split


@pytest.fixture
def nobody() -> Callable[[Batch], Batch]:
    """Takes the persons out of a batch."""
    return lambda batch: Batch(
        images=batch.images,
        class_ids=batch.class_ids[:, :1],
        boxes_xyxy=torch.zeros(2, 1, 4),
        keypoints_xyv=torch.zeros(2, 1, 17, 3),
        is_person=torch.zeros(2, 1, dtype=torch.bool),
    )
