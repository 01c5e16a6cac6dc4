"""One training batch: images and their persons, padded to the same number of persons an image.

Shape legend: B images, M persons an image at most, K keypoints, S image side in px.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One augmented image and its N persons, in pixels of that image."""

    image_rgb: np.ndarray  # (S, S, 3) uint8
    class_ids: np.ndarray  # (N,) int64
    boxes_xyxy: np.ndarray  # (N, 4) float32
    keypoints_xyv: np.ndarray  # (N, K, 3) float32


@dataclass(frozen=True)
class Batch:
    """B samples as tensors; rows of persons beyond an image's own are zero and masked out."""

    images: Tensor  # (B, 3, S, S) uint8, RGB, channels last in memory
    class_ids: Tensor  # (B, M) int64
    boxes_xyxy: Tensor  # (B, M, 4) float32, px
    keypoints_xyv: Tensor  # (B, M, K, 3) float32, px and visibility 0/1/2
    is_person: Tensor  # (B, M) bool

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on `device`; the process does not wait for copies from pinned memory."""
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def pin_memory(self) -> "Batch":
        """Returns the batch in page-locked memory; the loader calls this when a GPU is in use."""
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples into a batch, padding persons to the most crowded image (at least one row)."""
    n_rows = max(1, *(len(sample.class_ids) for sample in samples))

    def pad(arrays: list[np.ndarray]) -> Tensor:
        padded = np.zeros((len(arrays), n_rows, *arrays[0].shape[1:]), arrays[0].dtype)
        for row, array in zip(padded, arrays, strict=True):
            row[: len(array)] = array
        return torch.from_numpy(padded)

    n_persons = torch.tensor([len(sample.class_ids) for sample in samples])
    return Batch(
        images=torch.from_numpy(np.stack([sample.image_rgb for sample in samples])).permute(0, 3, 1, 2),
        class_ids=pad([sample.class_ids for sample in samples]),
        boxes_xyxy=pad([sample.boxes_xyxy for sample in samples]),
        keypoints_xyv=pad([sample.keypoints_xyv for sample in samples]),
        is_person=torch.arange(n_rows) < n_persons[:, None],
    )
