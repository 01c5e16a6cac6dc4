"""Persons drawn on their image: limbs coloured by side and part, keypoints, boxes and scores."""

import cv2
import numpy as np

from posefoundry.inference.results import PoseResult
from posefoundry.skeleton import Skeleton

Colour = tuple[int, int, int]  # BGR

# Warm on the person's left, cold on the right, so that exchanged sides are seen at a glance.
COLOURS: dict[tuple[str, str], Colour] = {
    ("left", "arm"): (60, 170, 255),
    ("left", "leg"): (80, 100, 255),
    ("left", "head"): (120, 210, 255),
    ("right", "arm"): (255, 190, 70),
    ("right", "leg"): (255, 120, 90),
    ("right", "head"): (255, 225, 150),
    ("", "torso"): (130, 225, 140),
    ("", "head"): (240, 240, 240),
}
SIDE_COLOURS: dict[str, Colour] = {"left": (60, 170, 255), "right": (255, 190, 70), "": (130, 225, 140)}
OUTLINE: Colour = (25, 25, 25)
BOX: Colour = (245, 245, 245)
BOX_OPACITY = 0.6
TAG_OPACITY = 0.65

PARTS = {
    "arm": ("shoulder", "elbow", "wrist", "hand", "thumb", "finger"),
    "leg": ("hip", "knee", "ankle", "foot", "toe", "heel"),
    "head": ("nose", "eye", "ear", "mouth", "head", "neck", "face"),
}

_SUBPIXEL_BITS = 4  # OpenCV draws at 1/16 px


def draw_poses(
    image_bgr: np.ndarray, result: PoseResult, skeleton: Skeleton, *, min_keypoint_confidence: float = 0.5
) -> np.ndarray:
    """Draws the persons of a result, the least certain first.

    Args:
        image_bgr: (H, W, 3) uint8; stays as it is.
        result: What was found in this image.
        skeleton: Its edges become limbs; its names decide their colours.
        min_keypoint_confidence: Keypoints below, and limbs that end in one, are left out.

    Returns:
        A new image of the same size.
    """
    order = range(len(result) - 1, -1, -1)
    boxes = image_bgr.copy()
    for person in order:
        _draw_box(boxes, result.boxes_xyxy[person])
    canvas = cv2.addWeighted(boxes, BOX_OPACITY, image_bgr, 1 - BOX_OPACITY, 0)
    for person in order:
        width_px = _line_width_px(result.boxes_xyxy[person], image_bgr.shape[:2])
        _draw_skeleton(canvas, result.keypoints_xyv[person], skeleton, width_px, min_keypoint_confidence)
    for person in order:
        _draw_score(canvas, result.boxes_xyxy[person], float(result.scores[person]))
    return canvas


def _line_width_px(box_xyxy: np.ndarray, image_size_hw: tuple[int, ...]) -> int:
    """Returns a width that suits the person's size and is never coarse for the image."""
    person_px = float(np.sqrt(max((box_xyxy[2] - box_xyxy[0]) * (box_xyxy[3] - box_xyxy[1]), 1)))
    return int(np.clip(round(person_px / 60), 1, max(1, round(max(image_size_hw) / 180))))


def _draw_skeleton(
    canvas: np.ndarray, keypoints_xyv: np.ndarray, skeleton: Skeleton, width_px: int, min_confidence: float
) -> None:
    shown = keypoints_xyv[:, 2] >= min_confidence
    points = [_subpixel(point) for point in keypoints_xyv[:, :2]]
    parts = [_side_and_part(name) for name in skeleton.keypoint_names]
    limbs = [(a, b) for a, b in skeleton.edges if shown[a] and shown[b]]
    # Faces are small: their lines and points are finer than a body's.
    widths = {part: max(1, round(width_px / 2)) if part == "head" else width_px for _, part in parts}
    for extra_px in (2, 0):  # all outlines first, so that none cuts through a neighbour's colour
        for a, b in limbs:
            colour = OUTLINE if extra_px else _limb_colour(parts[a], parts[b])
            width = min(widths[parts[a][1]], widths[parts[b][1]]) + extra_px
            cv2.line(canvas, points[a], points[b], colour, width, cv2.LINE_AA, _SUBPIXEL_BITS)
        for index in np.flatnonzero(shown):
            colour = OUTLINE if extra_px else _colour(*parts[index])
            radius = _scaled(0.9 * widths[parts[index][1]] + extra_px / 2)
            cv2.circle(canvas, points[index], radius, colour, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL_BITS)


def _draw_box(canvas: np.ndarray, box_xyxy: np.ndarray) -> None:
    thickness = max(1, round(max(canvas.shape[:2]) / 500))
    low, high = _subpixel(box_xyxy[:2]), _subpixel(box_xyxy[2:])
    cv2.rectangle(canvas, low, high, BOX, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


def _draw_score(canvas: np.ndarray, box_xyxy: np.ndarray, score: float) -> None:
    """Writes the score on the box's upper edge, or below it where the image ends."""
    image_height, image_width = canvas.shape[:2]
    font_scale = float(np.clip(max(image_height, image_width) / 1500, 0.3, 1.2))
    text = f"{score:.2f}"
    (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, font_scale, 1)
    margin = max(2, text_height // 3)
    tag_width, tag_height = text_width + 2 * margin, text_height + 2 * margin
    left = int(np.clip(round(float(box_xyxy[0])), 0, max(image_width - tag_width, 0)))
    top = round(float(box_xyxy[1]))
    top = max(top - tag_height if top >= tag_height else top, 0)
    tag = canvas[top : top + tag_height, left : left + tag_width]
    tag[:] = (tag * (1 - TAG_OPACITY)).astype(np.uint8)
    origin = (left + margin, top + margin + text_height)
    cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, font_scale, BOX, 1, cv2.LINE_AA)


def _limb_colour(end_a: tuple[str, str], end_b: tuple[str, str]) -> Colour:
    (side_a, part_a), (side_b, part_b) = end_a, end_b
    if part_a != part_b:
        return _colour("", "torso")  # shoulder to hip, ear to shoulder
    if side_a != side_b:
        return _colour("", "torso" if part_a in ("arm", "leg") else part_a)  # across the body, or to the nose
    return _colour(side_a, part_a)


def _side_and_part(name: str) -> tuple[str, str]:
    lowered = name.lower()
    side = next((side for side in ("left", "right") if side in lowered), "")
    return side, next((part for part, words in PARTS.items() if any(word in lowered for word in words)), "")


def _colour(side: str, part: str) -> Colour:
    return COLOURS.get((side, part), SIDE_COLOURS[side])


def _subpixel(point_xy: np.ndarray) -> tuple[int, int]:
    # OpenCV's fixed-point coordinates overflow far outside the image, and know no NaN.
    x, y = np.clip(np.nan_to_num(point_xy), -10_000, 100_000)
    return _scaled(float(x)), _scaled(float(y))


def _scaled(value_px: float) -> int:
    return round(value_px * (1 << _SUBPIXEL_BITS))
