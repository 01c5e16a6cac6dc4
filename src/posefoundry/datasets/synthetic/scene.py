"""One synthetic image: who stands where, in front of whom, and what of it can be seen."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from posefoundry.datasets.synthetic.backdrop import add_grain, paint_backdrop, paint_obstacle
from posefoundry.datasets.synthetic.figure import Figure, sample_figure
from posefoundry.datasets.synthetic.painter import Layer, PaintedPerson, PersonPainter, sample_outfit
from posefoundry.skeleton import COCO_PERSON_CATEGORY

SPLITS = ("train", "val", "test")

EMPTY_FRACTION, CROWD_FRACTION, OBSTACLE_FRACTION, TRUNCATED_FRACTION = 0.03, 0.02, 0.25, 0.2
MAX_BOX_IOU, MAX_BOX_COVER = 0.25, 0.5
MIN_VISIBLE_FRACTION = 0.35
HEIGHT_FRACTIONS = (0.35, 0.95)
JPEG_QUALITY = 92
_IDS_PER_SPLIT, _IDS_PER_IMAGE = 10_000_000, 100


@dataclass(frozen=True)
class DrawnImage:
    """One image as JPEG bytes, with its COCO image record and annotations."""

    jpeg: bytes
    image: dict[str, Any]
    annotations: list[dict[str, Any]]


@dataclass(frozen=True)
class Placed:
    """A figure with its place: height in px, the hips' centre in px, and the box of its joints and outline."""

    figure: Figure
    height_px: float
    origin_xy: np.ndarray
    box_xyxy: np.ndarray


def draw_image(seed: int, split: str, index: int, *, size_px: int, max_persons: int) -> DrawnImage:
    """Draws image number `index` of a split; the same arguments give the same bytes.

    Keypoints, boxes and areas are in px, where pixel i spans i to i + 1. Visibility: 2 visible; 1 inside the image
    but hidden by a person or object in front, by another part of the own body, or, for nose and eyes, by the head
    seen from behind; 0 (and x = y = 0) outside the image. `area` counts the pixels of the whole silhouette inside the
    image, hidden ones included; `bbox` is the tight box of the same silhouette.

    Args:
        seed: The data set's seed.
        split: One of `SPLITS`; splits share no image.
        index: Number of the image, from 0.
        size_px: Side of the square image.
        max_persons: Most persons in one image, crowds apart.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    picture = paint_backdrop(rng, size_px)
    image_id = SPLITS.index(split) * _IDS_PER_SPLIT + index + 1
    annotations: list[dict[str, Any]] = []
    placed: list[Placed] = []
    if rng.random() >= EMPTY_FRACTION:
        crowd = None
        if rng.random() < CROWD_FRACTION:
            crowd = _draw_crowd(rng, picture, size_px)
        placed = _place(rng, size_px, max_persons)
        annotations = _draw_persons(rng, picture, placed, size_px)
        if crowd:
            annotations.append(crowd)
    picture = add_grain(rng, picture)
    for number, annotation in enumerate(annotations):
        annotation.update(
            id=image_id * _IDS_PER_IMAGE + number, image_id=image_id, category_id=COCO_PERSON_CATEGORY["id"]
        )
    _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    image = {"id": image_id, "file_name": f"{split}_{index:06d}.jpg", "width": size_px, "height": size_px}
    return DrawnImage(jpeg.tobytes(), image, annotations)


def _place(rng: np.random.Generator, size_px: int, max_persons: int) -> list[Placed]:
    """Finds places for one to `max_persons` persons that overlap moderately; nearer ones (lower feet) come last."""
    wanted = 1 + min(int(rng.exponential(1.3)), max_persons - 1)
    low, high = HEIGHT_FRACTIONS
    if wanted > 2:
        high = 0.75
    placed: list[Placed] = []
    for _ in range(wanted):
        for _ in range(8):
            candidate = _sample_place(rng, size_px, size_px * rng.uniform(low, high))
            if all(_overlap_is_moderate(candidate.box_xyxy, other.box_xyxy) for other in placed):
                placed.append(candidate)
                break
    return sorted(placed, key=lambda person: person.box_xyxy[3])


def _sample_place(rng: np.random.Generator, size_px: int, height_px: float) -> Placed:
    figure = sample_figure(rng)
    reach = np.concatenate([figure.keypoints_xy, figure.hands_xy, figure.toes_xy])
    top = figure.head_xy - 0.12
    low = np.minimum(reach.min(0) - 0.045, top) * height_px
    high = np.maximum(reach.max(0) + 0.045, figure.head_xy + 0.12) * height_px
    inside = (-low, size_px - high)
    first, last = np.minimum(*inside), np.maximum(*inside)
    origin = rng.uniform(first, last)
    if rng.random() < TRUNCATED_FRACTION:
        side = rng.integers(3)
        cut = rng.uniform(0.1, 0.4) * (high - low)
        if side == 0:
            origin[0] = -low[0] - cut[0]
        elif side == 1:
            origin[0] = size_px - high[0] + cut[0]
        else:
            origin[1] = size_px - high[1] + cut[1]
    return Placed(figure, height_px, origin, np.concatenate([origin + low, origin + high]))


def _overlap_is_moderate(a: np.ndarray, b: np.ndarray) -> bool:
    shared = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    area_a, area_b = np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2])
    return bool(shared <= MAX_BOX_IOU * (area_a + area_b - shared) and shared <= MAX_BOX_COVER * min(area_a, area_b))


def _draw_persons(
    rng: np.random.Generator, picture: np.ndarray, placed: list[Placed], size_px: int
) -> list[dict[str, Any]]:
    painted = [PersonPainter(p.figure, sample_outfit(rng), p.origin_xy, p.height_px, size_px).paint() for p in placed]
    covered = np.zeros((size_px, size_px), bool)
    obstacle = None
    if placed and rng.random() < OBSTACLE_FRACTION:
        obstacle = paint_obstacle(rng, size_px, placed[int(rng.integers(len(placed)))].box_xyxy)
        covered |= obstacle[1] > 127
    shown: list[tuple[PaintedPerson, dict[str, Any]]] = []
    for person in reversed(painted):  # from front to back
        silhouette = person.layer.parts > 0
        visible = np.count_nonzero(silhouette & ~covered)
        if visible < MIN_VISIBLE_FRACTION * max(np.count_nonzero(silhouette), 1) or visible == 0:
            continue
        shown.append((person, _annotation(person, silhouette, covered)))
        covered |= silhouette
    for person, _ in reversed(shown):
        _blend(picture, person.layer)
    if obstacle:
        alpha = obstacle[1][..., None].astype(np.uint16)
        picture[:] = (picture * (255 - alpha) + obstacle[0] * alpha) // 255
    return [annotation for _, annotation in reversed(shown)]


def _blend(picture: np.ndarray, layer: Layer) -> None:
    x, y, width, height = cv2.boundingRect(layer.bgra[..., 3])
    window = np.s_[y : y + height, x : x + width]
    patch = layer.bgra[window]
    rest = 255 - patch[..., 3:].astype(np.uint16)
    picture[window] = np.minimum(patch[..., :3] + picture[window] * rest // 255, 255)


def _annotation(person: PaintedPerson, silhouette: np.ndarray, covered: np.ndarray) -> dict[str, Any]:
    size_px = len(silhouette)
    keypoints: list[float | int] = []
    for (x, y), hidden in zip(np.round(person.keypoints_xy, 2).tolist(), person.hidden_by_self, strict=True):
        if not (0 <= x < size_px and 0 <= y < size_px):
            keypoints += [0, 0, 0]
        else:
            keypoints += [x, y, 1 if hidden or covered[int(y), int(x)] else 2]
    return {
        "bbox": [float(side) for side in cv2.boundingRect(silhouette.astype(np.uint8))],
        "area": float(np.count_nonzero(silhouette)),
        "iscrowd": 0,
        "keypoints": keypoints,
        "num_keypoints": sum(v > 0 for v in keypoints[2::3]),
    }


def _draw_crowd(rng: np.random.Generator, picture: np.ndarray, size_px: int) -> dict[str, Any]:
    """Draws a cluster of tiny people that nobody could annotate one by one, as one region."""
    together = np.zeros((size_px, size_px), np.uint8)
    centre = size_px * np.array([rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.4)])
    for _ in range(int(rng.integers(6, 13))):
        origin = centre + size_px * np.array([rng.normal(0, 0.07), rng.normal(0, 0.015)])
        height_px = size_px * rng.uniform(0.12, 0.16)
        person = PersonPainter(sample_figure(rng), sample_outfit(rng), origin, height_px, size_px).paint()
        _blend(picture, person.layer)
        together |= person.layer.parts
    return {
        "bbox": [float(side) for side in cv2.boundingRect(together)],
        "area": float(np.count_nonzero(together)),
        "iscrowd": 1,
        "keypoints": [0] * (3 * len(COCO_PERSON_CATEGORY["keypoints"])),
        "num_keypoints": 0,
    }
