"""What a model found in one image."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class PoseResult:
    """N persons with K keypoints each, best score first, in pixels of the source image.

    Attributes:
        boxes_xyxy: (N, 4) float32 left, top, right, bottom, within the image.
        scores: (N,) float32 in 0..1.
        class_ids: (N,) int64, indices into the model's class names.
        keypoints_xyv: (N, K, 3) float32 x, y and confidence in 0..1 (1 for models without visibility).
        image_size_hw: Size of the source image.
        path: Where the image was read from, if it was.
        speed_ms: Milliseconds this image took: `preprocess`, `inference`, `postprocess`; a batch's time is shared
            equally among its images. Where they are more than a batch, threads work on others meanwhile, so the
            sum is more than the time that passed.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    keypoints_xyv: np.ndarray
    image_size_hw: tuple[int, int]
    path: Path | None
    speed_ms: dict[str, float]

    def __len__(self) -> int:
        return len(self.scores)
