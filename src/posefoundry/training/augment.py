"""What happens to a training image and its persons: mosaic, one affine warp, colour, mirror.

Persons travel with the image: their boxes and keypoints are always those of the pixels. A keypoint that leaves the
image becomes v=0; a person of whom too little is left goes.

Shape legend: N persons of an image, K keypoints, S side of the training image in px.
"""

import math
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np

from posefoundry.config import Augment

# The grey of the border, the value that the YOLO families pad with in training and prediction alike.
BORDER_VALUE = 114
MIN_SIDE_PX = 2.0
MIN_AREA_FRACTION = 0.1


@dataclass(frozen=True)
class Scene:
    """An image and its persons, in pixels."""

    image_bgr: np.ndarray  # (H, W, 3) uint8
    class_ids: np.ndarray  # (N,) int64
    boxes_xyxy: np.ndarray  # (N, 4) float32
    keypoints_xyv: np.ndarray  # (N, K, 3) float32

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in px."""
        return self.image_bgr.shape[0], self.image_bgr.shape[1]

    def select(self, rows: np.ndarray) -> Self:
        """Returns the scene with the persons at `rows` (mask or indices) alone."""
        return type(self)(self.image_bgr, self.class_ids[rows], self.boxes_xyxy[rows], self.keypoints_xyv[rows])


def mosaic(scenes: list[Scene], side_px: int, rng: np.random.Generator) -> Scene:
    """Puts four scenes around a random point of a canvas of twice the side (YOLOv4, arXiv:2004.10934)."""
    canvas = np.full((2 * side_px, 2 * side_px, 3), BORDER_VALUE, np.uint8)
    centre_x, centre_y = (int(v) for v in rng.integers(side_px // 2, side_px * 3 // 2, 2))
    placed = []
    for position, scene in enumerate(scenes):
        height, width = scene.size_hw
        left = centre_x - width if position % 2 == 0 else centre_x
        top = centre_y - height if position < 2 else centre_y
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, 2 * side_px), min(top + height, 2 * side_px)
        canvas[y1:y2, x1:x2] = scene.image_bgr[y1 - top : y2 - top, x1 - left : x2 - left]
        placed.append(_transformed(scene, np.array([[1, 0, left], [0, 1, top]], np.float64)))
    merged = Scene(
        canvas,
        np.concatenate([scene.class_ids for scene in placed]),
        np.concatenate([scene.boxes_xyxy for scene in placed]),
        np.concatenate([scene.keypoints_xyv for scene in placed]),
    )
    return clip_to_image(merged, merged.boxes_xyxy)


def warp(scene: Scene, side_px: int, settings: Augment, rng: np.random.Generator) -> Scene:
    """Rotates, scales and shifts the scene about its centre into a square of `side_px`, in one resampling."""
    angle = rng.uniform(-settings.rotate_degrees, settings.rotate_degrees)
    scale = rng.uniform(1 - settings.scale_fraction, 1 + settings.scale_fraction)
    shift_xy = rng.uniform(0.5 - settings.translate_fraction, 0.5 + settings.translate_fraction, 2) * side_px
    height, width = scene.size_hw
    cos, sin = math.cos(math.radians(angle)) * scale, math.sin(math.radians(angle)) * scale
    linear = np.array([[cos, sin], [-sin, cos]])
    matrix = np.column_stack([linear, shift_xy - linear @ (width / 2, height / 2)])
    if (height, width) == (side_px, side_px) and np.array_equal(matrix, np.eye(2, 3)):
        return scene
    return apply_affine(scene, matrix, side_px)


def apply_affine(scene: Scene, matrix: np.ndarray, side_px: int) -> Scene:
    """Warps image, boxes and keypoints by a (2, 3) matrix that maps points of the scene to points of the result."""
    # Points count from the corner of the first pixel, OpenCV's warp from its centre: half a pixel apart.
    centre = np.array([0.5, 0.5])
    opencv_matrix = matrix.copy()
    opencv_matrix[:, 2] += matrix[:, :2] @ centre - centre
    image = cv2.warpAffine(
        scene.image_bgr,
        opencv_matrix,
        (side_px, side_px),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(BORDER_VALUE,) * 3,
    )
    moved = _transformed(scene, matrix)
    return clip_to_image(
        Scene(image, moved.class_ids, moved.boxes_xyxy, moved.keypoints_xyv), unclipped_xyxy=moved.boxes_xyxy
    )


def _transformed(scene: Scene, matrix: np.ndarray) -> Scene:
    """Returns the scene with its persons moved by a (2, 3) matrix and the image as it was."""
    linear, offset = matrix[:, :2].astype(np.float32), matrix[:, 2].astype(np.float32)
    x1, y1, x2, y2 = scene.boxes_xyxy.T
    corners = np.stack([x1, y1, x2, y1, x2, y2, x1, y2], -1).reshape(-1, 4, 2) @ linear.T + offset
    keypoints = scene.keypoints_xyv.copy()
    keypoints[..., :2] = keypoints[..., :2] @ linear.T + offset
    boxes = np.concatenate([corners.min(1), corners.max(1)], -1).astype(np.float32)
    return Scene(scene.image_bgr, scene.class_ids, boxes, keypoints)


def clip_to_image(scene: Scene, unclipped_xyxy: np.ndarray) -> Scene:
    """Cuts boxes at the border, hides keypoints beyond it, and drops persons of whom a tenth or less is left."""
    height, width = scene.size_hw
    boxes = unclipped_xyxy.copy()
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    keypoints = scene.keypoints_xyv.copy()
    x, y = keypoints[..., 0], keypoints[..., 1]
    keypoints[(x < 0) | (y < 0) | (x > width) | (y > height)] = 0
    keypoints[keypoints[..., 2] == 0] = 0
    side_wh = boxes[:, 2:] - boxes[:, :2]
    area_before = (unclipped_xyxy[:, 2:] - unclipped_xyxy[:, :2]).prod(-1)
    kept = (side_wh > MIN_SIDE_PX).all(-1) & (side_wh.prod(-1) > MIN_AREA_FRACTION * area_before)
    return Scene(scene.image_bgr, scene.class_ids, boxes, keypoints).select(kept)


def shift_colour(scene: Scene, settings: Augment, rng: np.random.Generator) -> Scene:
    """Multiplies hue, saturation and value by random gains around 1."""
    limits = np.array([settings.hsv_hue, settings.hsv_saturation, settings.hsv_value])
    if not limits.any():
        return scene
    gain_h, gain_s, gain_v = 1 + rng.uniform(-1, 1, 3) * limits
    levels = np.arange(256)
    hue, saturation, value = cv2.split(cv2.cvtColor(scene.image_bgr, cv2.COLOR_BGR2HSV))
    shifted = cv2.merge(
        [
            cv2.LUT(hue, (levels * gain_h % 180).astype(np.uint8)),
            cv2.LUT(saturation, (levels * gain_s).clip(0, 255).astype(np.uint8)),
            cv2.LUT(value, (levels * gain_v).clip(0, 255).astype(np.uint8)),
        ]
    )
    image = cv2.cvtColor(shifted, cv2.COLOR_HSV2BGR)
    return Scene(image, scene.class_ids, scene.boxes_xyxy, scene.keypoints_xyv)


def mirror(scene: Scene, flip_indices: tuple[int, ...]) -> Scene:
    """Mirrors left and right; left keypoints become right ones."""
    width = scene.size_hw[1]
    boxes = scene.boxes_xyxy.copy()
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    keypoints = scene.keypoints_xyv[:, list(flip_indices)].copy()
    keypoints[..., 0] = np.where(keypoints[..., 2] > 0, width - keypoints[..., 0], 0)
    return Scene(np.ascontiguousarray(scene.image_bgr[:, ::-1]), scene.class_ids, boxes, keypoints)
