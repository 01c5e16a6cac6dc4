"""What happens to a training image and its persons: one warp, colour, blur, cutout, mirror.

Persons travel with the image: their boxes and keypoints are always those of the pixels. A keypoint that leaves the
image becomes v=0. One that something covers stays where it is, as v=1: labelled, but not visible. A person of whom too
little is left, or shows, goes. What puts several images together is in `compose`.

Shape legend: N persons of an image, K keypoints, S side of the training image in px.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import cv2
import numpy as np

from posefoundry.config import Augment

# The grey of the border, the value that the YOLO families pad with in training and prediction alike.
BORDER_VALUE = 114
MIN_SIDE_PX = 2.0
MIN_AREA_FRACTION = 0.1
MAX_HOLES = 3
HOLE_SIDE_FRACTION = (0.1, 0.4)
BLUR_SIGMA_PX = (0.3, 2.0)
RESAMPLING: dict[str, Any] = {
    "flags": cv2.INTER_LINEAR,
    "borderMode": cv2.BORDER_CONSTANT,
    "borderValue": (BORDER_VALUE,) * 3,
}


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


def warp(scene: Scene, side_px: int, settings: Augment, rng: np.random.Generator, zoom: float = 1.0) -> Scene:
    """Rotates, scales, shears, tilts and shifts the scene about its centre into a square, in one resampling.

    Args:
        scene: Of any size.
        side_px: Side of the square.
        settings: By how much, at most; what is 0 draws no number.
        rng: Decides.
        zoom: Scales besides, by which an image of the usual side fits another one.
    """
    angle = rng.uniform(-settings.rotate_degrees, settings.rotate_degrees)
    scale = rng.uniform(1 - settings.scale_fraction, 1 + settings.scale_fraction) * zoom
    shift_xy = rng.uniform(0.5 - settings.translate_fraction, 0.5 + settings.translate_fraction, 2) * side_px
    height, width = scene.size_hw
    cos, sin = math.cos(math.radians(angle)) * scale, math.sin(math.radians(angle)) * scale
    linear = np.array([[cos, sin], [-sin, cos]])
    if settings.shear_degrees:
        limit = settings.shear_degrees
        shear_x, shear_y = np.tan(np.radians(rng.uniform(-limit, limit, 2)))
        linear = linear @ np.array([[1, shear_x], [shear_y, 1]])
    matrix = np.column_stack([linear, shift_xy - linear @ (width / 2, height / 2)])
    if settings.perspective_fraction:
        limit = settings.perspective_fraction
        tilt_xy = rng.uniform(-limit, limit, 2) / (width / 2, height / 2)
        return apply_homography(scene, _tilted(linear, tilt_xy, shift_xy, (width / 2, height / 2)), side_px)
    if (height, width) == (side_px, side_px) and np.array_equal(matrix, np.eye(2, 3)):
        return scene
    return apply_affine(scene, matrix, side_px)


def _tilted(
    linear: np.ndarray, tilt_xy: np.ndarray, shift_xy: np.ndarray, centre_xy: tuple[float, float]
) -> np.ndarray:
    """Returns the (3, 3) homography that tilts about the centre, then applies `linear`, then puts the centre there."""
    to_centre, tilt, placed = np.eye(3), np.eye(3), np.eye(3)
    to_centre[:2, 2] = -np.array(centre_xy)
    tilt[2, :2] = tilt_xy
    placed[:2, :2], placed[:2, 2] = linear, shift_xy
    return placed @ tilt @ to_centre


def apply_affine(scene: Scene, matrix: np.ndarray, side_px: int) -> Scene:
    """Warps image, boxes and keypoints by a (2, 3) matrix that maps points of the scene to points of the result."""
    # Points count from the corner of the first pixel, OpenCV's warp from its centre: half a pixel apart.
    centre = np.array([0.5, 0.5])
    opencv_matrix = matrix.copy()
    opencv_matrix[:, 2] += matrix[:, :2] @ centre - centre
    image = cv2.warpAffine(scene.image_bgr, opencv_matrix, (side_px, side_px), **RESAMPLING)
    moved = moved_persons(scene, matrix)
    return clip_to_image(replace(moved, image_bgr=image), unclipped_xyxy=moved.boxes_xyxy)


def apply_homography(scene: Scene, matrix: np.ndarray, side_px: int) -> Scene:
    """Warps image, boxes and keypoints by a (3, 3) matrix that maps points of the scene to points of the result."""
    to_corner, to_centre = np.eye(3), np.eye(3)
    to_corner[:2, 2], to_centre[:2, 2] = 0.5, -0.5
    image = cv2.warpPerspective(scene.image_bgr, to_centre @ matrix @ to_corner, (side_px, side_px), **RESAMPLING)
    boxes = _enclosing(_projected(_corners(scene.boxes_xyxy), matrix))
    keypoints = scene.keypoints_xyv.copy()
    keypoints[..., :2] = _projected(keypoints[..., :2], matrix)
    return clip_to_image(Scene(image, scene.class_ids, boxes, keypoints), unclipped_xyxy=boxes)


def _projected(points_xy: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    homogeneous = points_xy @ matrix[:, :2].T + matrix[:, 2]
    return (homogeneous[..., :2] / homogeneous[..., 2:]).astype(np.float32)


def _corners(boxes_xyxy: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = boxes_xyxy.T
    return np.stack([x1, y1, x2, y1, x2, y2, x1, y2], -1).reshape(-1, 4, 2)


def _enclosing(corners_xy: np.ndarray) -> np.ndarray:
    return np.concatenate([corners_xy.min(1), corners_xy.max(1)], -1).astype(np.float32)


def moved_persons(scene: Scene, matrix: np.ndarray) -> Scene:
    """Returns the scene with its persons moved by a (2, 3) matrix and the image as it was."""
    linear, offset = matrix[:, :2].astype(np.float32), matrix[:, 2].astype(np.float32)
    keypoints = scene.keypoints_xyv.copy()
    keypoints[..., :2] = keypoints[..., :2] @ linear.T + offset
    boxes = _enclosing(_corners(scene.boxes_xyxy) @ linear.T + offset)
    return replace(scene, boxes_xyxy=boxes, keypoints_xyv=keypoints)


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
    return replace(scene, boxes_xyxy=boxes, keypoints_xyv=keypoints).select(kept)


def shift_colour(scene: Scene, settings: Augment, rng: np.random.Generator) -> Scene:
    """Multiplies hue, saturation and value by random gains around 1."""
    limits = np.array([settings.hsv_hue, settings.hsv_saturation, settings.hsv_value])
    if not limits.any():
        return scene
    gain_h, gain_s, gain_v = 1 + rng.uniform(-1, 1, 3) * limits
    levels = np.arange(256)
    shifted = np.stack([levels * gain_h % 180, (levels * gain_s).clip(0, 255), (levels * gain_v).clip(0, 255)], -1)
    hsv = cv2.cvtColor(scene.image_bgr, cv2.COLOR_BGR2HSV)
    cv2.LUT(hsv, shifted[None].astype(np.uint8), dst=hsv)
    return replace(scene, image_bgr=cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))


def blur(scene: Scene, rng: np.random.Generator) -> Scene:
    """Takes sharpness away, as a lens out of focus does; persons stay where they are."""
    return replace(scene, image_bgr=cv2.GaussianBlur(scene.image_bgr, (0, 0), rng.uniform(*BLUR_SIGMA_PX)))


def cut_out(scene: Scene, rng: np.random.Generator) -> Scene:
    """Covers up to three rectangles, each somewhere in a person's box, by one colour each (arXiv:1708.04552).

    A rectangle's sides are a tenth to four tenths of the box's; of the image's, where nobody is in it. What learns to
    tell where a covered joint is (AID, arXiv:2008.07139) must be told: its keypoint becomes v=1.
    """
    height, width = scene.size_hw
    image = scene.image_bgr.copy()
    covered = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, MAX_HOLES + 1)):
        whole = np.array([0, 0, width, height], np.float32)
        x1, y1, x2, y2 = scene.boxes_xyxy[rng.integers(len(scene.boxes_xyxy))] if len(scene.boxes_xyxy) else whole
        centre = rng.uniform((x1, y1), (x2, y2))
        half = np.array([x2 - x1, y2 - y1]) * rng.uniform(*HOLE_SIDE_FRACTION, 2) / 2
        left, top = np.floor(centre - half).astype(int).clip(0)
        right, bottom = np.ceil(centre + half).astype(int)
        image[top:bottom, left:right] = rng.integers(0, 256, 3)
        covered[top:bottom, left:right] = 1
    return hide_under(replace(scene, image_bgr=image), covered)


def hide_under(scene: Scene, covered: np.ndarray) -> Scene:
    """Marks keypoints under a cover as not visible, and drops persons who hardly show any more.

    A person goes of whose box a tenth or less shows, or who had visible keypoints and has lost the last of them.

    Args:
        scene: Its image has the cover in it already.
        covered: (H, W) uint8, 1 where something is before what was there.
    """
    if not len(scene.class_ids):
        return scene
    height, width = scene.size_hw
    keypoints = scene.keypoints_xyv.copy()
    x = keypoints[..., 0].astype(int).clip(0, width - 1)
    y = keypoints[..., 1].astype(int).clip(0, height - 1)
    visible = keypoints[..., 2] == 2
    still_visible = visible & (covered[y, x] == 0)
    keypoints[visible & ~still_visible, 2] = 1
    kept = ~visible.any(-1) | still_visible.any(-1)
    for person, box in enumerate(scene.boxes_xyxy):
        x1, y1 = np.floor(box[:2]).astype(int).clip(0)
        x2, y2 = np.ceil(box[2:]).astype(int)
        kept[person] &= covered[y1:y2, x1:x2].mean() < 1 - MIN_AREA_FRACTION
    return replace(scene, keypoints_xyv=keypoints).select(kept)


def mirror(scene: Scene, flip_indices: tuple[int, ...]) -> Scene:
    """Mirrors left and right; left keypoints become right ones."""
    return _mirrored(scene, flip_indices, axis=0)


def mirror_upside_down(scene: Scene, flip_indices: tuple[int, ...]) -> Scene:
    """Mirrors top and bottom; as in any mirror, left keypoints become right ones."""
    return _mirrored(scene, flip_indices, axis=1)


def _mirrored(scene: Scene, flip_indices: tuple[int, ...], axis: int) -> Scene:
    """Mirrors x (axis 0) or y (axis 1)."""
    side = scene.size_hw[1 - axis]
    boxes = scene.boxes_xyxy.copy()
    boxes[:, [axis, axis + 2]] = side - boxes[:, [axis + 2, axis]]
    keypoints = scene.keypoints_xyv[:, list(flip_indices)].copy()
    keypoints[..., axis] = np.where(keypoints[..., 2] > 0, side - keypoints[..., axis], 0)
    return Scene(cv2.flip(scene.image_bgr, 1 - axis), scene.class_ids, boxes, keypoints)
