"""Pictures of what the model is shown."""

import cv2
import numpy as np

from posefoundry.inference.drawing import draw_poses
from posefoundry.inference.results import PoseResult
from posefoundry.training.data import TrainingImages

N_BATCHES = 2
MAX_TILES = 16


def batch_pictures(images: TrainingImages, batch_size: int) -> dict[str, np.ndarray]:
    """Returns grids of augmented training images of the first epoch with their labels drawn on them."""
    n_tiles = min(MAX_TILES, batch_size)
    grids = {}
    for number in range(N_BATCHES):
        indices = range(number * n_tiles, min((number + 1) * n_tiles, len(images)))
        tiles = [_labelled(images, index) for index in indices]
        if tiles:
            grids[f"train_batch_{number}"] = grid(tiles)
    return grids


def grid(tiles: list[np.ndarray]) -> np.ndarray:
    """Sets tiles of one size into a grid about as wide as high; missing ones are grey."""
    n_columns = int(np.ceil(np.sqrt(len(tiles))))
    blank = np.full_like(tiles[0], 128)
    rows = [tiles[start : start + n_columns] for start in range(0, len(tiles), n_columns)]
    rows[-1] += [blank] * (n_columns - len(rows[-1]))
    return cv2.vconcat([cv2.hconcat(row) for row in rows])


def _labelled(images: TrainingImages, index: int) -> np.ndarray:
    sample = images[0, index]
    image_bgr = cv2.cvtColor(sample.image_rgb, cv2.COLOR_RGB2BGR)
    n_persons = len(sample.class_ids)
    labels = PoseResult(
        boxes_xyxy=sample.boxes_xyxy,
        scores=np.ones(n_persons, np.float32),
        class_ids=sample.class_ids,
        keypoints_xyv=np.where(sample.keypoints_xyv[..., 2:] > 0, sample.keypoints_xyv / (1, 1, 2), 0),
        image_size_hw=image_bgr.shape[:2],
        path=None,
        speed_ms={},
    )
    return draw_poses(image_bgr, labels, images.spec.skeleton)
