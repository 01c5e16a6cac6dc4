"""Training images made of several: mosaic, mixup, and persons pasted from one image into another.

Labels say what is to be seen: a keypoint that a pasted person covers becomes v=1, as where a person in a photograph
stands before another.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from posefoundry.training.augment import BORDER_VALUE, Scene, clip_to_image, hide_under, moved_persons

# Each image of a mixture keeps at least this weight, so that no person in it is too faint to be asked for.
MIN_MIXTURE_WEIGHT = 0.4

MAX_PASTED = 3
PLACES_TRIED = 8
MAX_COVERED_FRACTION = 0.5
PASTED_SCALE = (0.6, 1.4)
PASTED_SIDE_PX = (16, 0.9)  # long side of the box: in px at least, and as a fraction of the image at most
MAX_FOREIGN_FRACTION = 0.2
MIN_LABELLED_FRACTION = 0.5
MARGIN_FRACTION = 0.12
COVERING_ALPHA = 128


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
        placed.append(moved_persons(scene, np.array([[1, 0, left], [0, 1, top]], np.float64)))
    merged = _joined(canvas, placed)
    return clip_to_image(merged, merged.boxes_xyxy)


def mix_up(scene: Scene, other: Scene, rng: np.random.Generator) -> Scene:
    """Shows two scenes of one size through each other, with the persons of both (mixup, arXiv:1902.04103)."""
    weight = rng.uniform(MIN_MIXTURE_WEIGHT, 1 - MIN_MIXTURE_WEIGHT)
    return _joined(cv2.addWeighted(scene.image_bgr, weight, other.image_bgr, 1 - weight, 0), [scene, other])


def pasteable(boxes_xyxy: np.ndarray, keypoints_xyv: np.ndarray) -> np.ndarray:
    """Tells which of N persons, in pixels or fractions, can be taken out of their image: (N,) bool.

    At least half of the keypoints are labelled, so that the outline is known, and other persons' boxes cover a fifth
    of the box at most, so that few pixels of people come along without labels.
    """
    x1, y1, x2, y2 = boxes_xyxy.T
    wide = (np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1)).clip(0)
    high = (np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1)).clip(0)
    shared = wide * high
    own_area = np.diag(shared).copy()
    np.fill_diagonal(shared, 0)
    labelled = (keypoints_xyv[..., 2] > 0).mean(-1)
    return (shared.sum(1) <= MAX_FOREIGN_FRACTION * own_area) & (labelled >= MIN_LABELLED_FRACTION)


def paste_person(scene: Scene, donor: Scene, rng: np.random.Generator) -> Scene:
    """Copies a person of the donor to a place where it covers nobody by more than half (after arXiv:2012.07177).

    Nobody outlined the person, so what is copied is the convex hull of its keypoints, widened by an eighth of its
    size, and the ellipse in its box, with a soft edge; some of the background comes along, but all of the person. The
    scene stays as it is where no person is fit or no place is found.
    """
    rows = np.flatnonzero(pasteable(donor.boxes_xyxy, donor.keypoints_xyv))
    if not len(rows):
        return scene
    patch = _patch(donor, int(rng.choice(rows)), scene.size_hw, rng)
    if patch is None:
        return scene
    (height, width), (patch_height, patch_width) = scene.size_hw, patch.alpha.shape
    for _ in range(PLACES_TRIED):
        left = int(rng.integers(0, width - patch_width + 1))
        top = int(rng.integers(0, height - patch_height + 1))
        box = patch.box_xyxy + np.array([left, top, left, top], np.float32)
        if (_covered_fractions(scene.boxes_xyxy, box) <= MAX_COVERED_FRACTION).all():
            return _pasted(scene, patch, left, top)
    return scene


@dataclass(frozen=True)
class _Patch:
    """A person cut out of an image, in px of its own h x w crop."""

    image_bgr: np.ndarray  # (h, w, 3) uint8
    alpha: np.ndarray  # (h, w) uint8, 255 on the person
    class_id: int
    box_xyxy: np.ndarray  # (4,) float32
    keypoints_xyv: np.ndarray  # (K, 3) float32


def _patch(donor: Scene, row: int, size_hw: tuple[int, int], rng: np.random.Generator) -> _Patch | None:
    """Cuts a person out and resizes it; None where it would be too small."""
    box, keypoints = donor.boxes_xyxy[row], donor.keypoints_xyv[row].copy()
    margin = MARGIN_FRACTION * (box[2:] - box[:2]).max()
    x1, y1 = np.floor(box[:2] - margin).astype(int).clip(0)
    x2, y2 = np.ceil(box[2:] + margin).astype(int).clip(0, (donor.size_hw[1], donor.size_hw[0]))
    crop_wh = np.array([x2 - x1, y2 - y1])
    largest = PASTED_SIDE_PX[1] * (np.array([size_hw[1], size_hw[0]]) / crop_wh).min()
    new_wh = np.round(crop_wh * min(rng.uniform(*PASTED_SCALE), largest)).astype(int)
    if new_wh.max() < PASTED_SIDE_PX[0] or new_wh.min() < 2:
        return None
    scale_xy = new_wh / crop_wh
    keypoints[:, :2] = (keypoints[:, :2] - (x1, y1)) * scale_xy
    keypoints[keypoints[:, 2] == 0] = 0
    own_box = ((box.reshape(2, 2) - (x1, y1)) * scale_xy).reshape(4)
    shrinks = new_wh[0] < crop_wh[0]
    image = cv2.resize(
        donor.image_bgr[y1:y2, x1:x2], new_wh.tolist(), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return _Patch(
        image,
        _outline(own_box, keypoints, (int(new_wh[1]), int(new_wh[0]))),
        int(donor.class_ids[row]),
        own_box.astype(np.float32),
        keypoints.astype(np.float32),
    )


def _outline(box_xyxy: np.ndarray, keypoints_xyv: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Returns (h, w) uint8: 255 in the hull of the keypoints and the ellipse in the box, falling to 0 around them."""
    alpha = np.zeros(size_hw, np.uint8)
    labelled = keypoints_xyv[keypoints_xyv[:, 2] > 0, :2].astype(np.int32)
    margin = max(1, round(MARGIN_FRACTION * float((box_xyxy[2:] - box_xyxy[:2]).max())))
    hull = cv2.convexHull(labelled)
    cv2.fillConvexPoly(alpha, hull, 255)
    # A line around the hull widens it by half its thickness.
    cv2.polylines(alpha, [hull], True, 255, margin)
    centre = ((box_xyxy[:2] + box_xyxy[2:]) / 2).tolist()
    cv2.ellipse(alpha, (centre, (box_xyxy[2:] - box_xyxy[:2]).tolist(), 0), 255, -1)
    edge = margin // 4 * 2 + 1
    return cv2.blur(alpha, (edge, edge))


def _covered_fractions(boxes_xyxy: np.ndarray, cover_xyxy: np.ndarray) -> np.ndarray:
    """Returns (N,): the part of each box that lies under another one."""
    low, high = np.maximum(boxes_xyxy[:, :2], cover_xyxy[:2]), np.minimum(boxes_xyxy[:, 2:], cover_xyxy[2:])
    return (high - low).clip(0).prod(-1) / (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(-1)


def _pasted(scene: Scene, patch: _Patch, left: int, top: int) -> Scene:
    height, width = patch.alpha.shape
    place = slice(top, top + height), slice(left, left + width)
    image = scene.image_bgr.copy()
    share = patch.alpha[..., None] / np.float32(255)
    image[place] = np.rint(image[place] * (1 - share) + patch.image_bgr * share)
    covered = np.zeros(scene.size_hw, np.uint8)
    covered[place] = patch.alpha >= COVERING_ALPHA
    below = hide_under(Scene(image, scene.class_ids, scene.boxes_xyxy, scene.keypoints_xyv), covered)
    keypoints = patch.keypoints_xyv.copy()
    keypoints[keypoints[:, 2] > 0, :2] += (left, top)
    box = patch.box_xyxy + np.array([left, top, left, top], np.float32)
    person = Scene(image, np.array([patch.class_id]), box[None], keypoints[None])
    return _joined(image, [below, person])


def _joined(image_bgr: np.ndarray, scenes: list[Scene]) -> Scene:
    """Returns an image with the persons of all scenes."""
    return Scene(
        image_bgr,
        np.concatenate([scene.class_ids for scene in scenes]),
        np.concatenate([scene.boxes_xyxy for scene in scenes]),
        np.concatenate([scene.keypoints_xyv for scene in scenes]),
    )
