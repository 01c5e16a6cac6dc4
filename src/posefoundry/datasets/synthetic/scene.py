"""One synthetic image: who stands where, who is in front of whom, and what can be seen of each."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from posefoundry.datasets.synthetic.backdrop import add_grain, paint_backdrop, paint_obstacle, paint_shadow
from posefoundry.datasets.synthetic.figure import Figure, sample_figure
from posefoundry.datasets.synthetic.outfit import sample_outfit
from posefoundry.datasets.synthetic.painter import LEFT_ANKLE, PaintedPerson, paint_person
from posefoundry.datasets.yolo import SPLITS
from posefoundry.skeleton import COCO_PERSON, COCO_PERSON_CATEGORY

EMPTY_FRACTION, CROWD_FRACTION, OBSTACLE_FRACTION, TRUNCATED_FRACTION = 0.03, 0.02, 0.25, 0.2
MEAN_FURTHER_PERSONS = 1.8
HEIGHT_FRACTIONS, MAX_HEIGHT_FRACTION_OF_MANY = (0.35, 0.95), 0.75
# People may overlap, but a box must not lie on another, nor a small person vanish behind a tall one.
MAX_BOX_IOU, MAX_BOX_COVER, PLACING_ATTEMPTS = 0.25, 0.5, 8
MIN_VISIBLE_FRACTION = 0.35
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
    """A figure with its place in the image.

    Attributes:
        figure: The pose.
        height_px: Standing height.
        origin_xy: (2,) the hips' centre in px.
        box_xyxy: (4,) roughly the box of the figure in px, inside the image or not.
    """

    figure: Figure
    height_px: float
    origin_xy: np.ndarray
    box_xyxy: np.ndarray


def draw_image(seed: int, split: str, index: int, *, size_px: int, max_persons: int) -> DrawnImage:
    """Draws image number `index` of a split; the same arguments give the same bytes.

    Keypoints, boxes and areas are in px, where pixel i spans i to i + 1. Visibility: 2 visible; 1 inside the image
    but hidden, by a person or thing in front, by another part of the own body, or, for nose and eyes, by the head
    seen from behind; 0 (and x = y = 0) outside the image. `area` counts the pixels of the whole silhouette inside the
    image, hidden ones included; `bbox` is the tight box of that silhouette.

    Args:
        seed: The data set's seed.
        split: One of `SPLITS`; splits share no image.
        index: Number of the image, from 0.
        size_px: Side of the square image.
        max_persons: Most persons in one image, crowds apart.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    picture = paint_backdrop(rng, size_px)
    annotations = [] if rng.random() < EMPTY_FRACTION else _draw_people(rng, picture, size_px, max_persons)
    _, jpeg = cv2.imencode(".jpg", add_grain(rng, picture), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    image_id = SPLITS.index(split) * _IDS_PER_SPLIT + index + 1
    image = {"id": image_id, "file_name": f"{split}_{index:06d}.jpg", "width": size_px, "height": size_px}
    category_id = COCO_PERSON_CATEGORY["id"]
    numbered = [
        {"id": image_id * _IDS_PER_IMAGE + number, "image_id": image_id, "category_id": category_id, **annotation}
        for number, annotation in enumerate(annotations)
    ]
    return DrawnImage(jpeg.tobytes(), image, numbered)


def _draw_people(rng: np.random.Generator, picture: np.ndarray, size_px: int, max_persons: int) -> list[dict[str, Any]]:
    """Draws perhaps a crowd, then persons from back to front, then perhaps a thing in front of one of them."""
    crowds = [_draw_crowd(rng, picture, size_px)] if rng.random() < CROWD_FRACTION else []
    placed = _place_persons(rng, size_px, max_persons)
    painted = [
        paint_person(p.figure, sample_outfit(rng), origin_xy=p.origin_xy, height_px=p.height_px, size_px=size_px)
        for p in placed
    ]
    obstacle = None
    if rng.random() < OBSTACLE_FRACTION:
        obstacle = paint_obstacle(rng, size_px, placed[int(rng.integers(len(placed)))].box_xyxy)
    in_front = obstacle.silhouette if obstacle else np.zeros((size_px, size_px), bool)
    annotations = annotate(painted, in_front)
    shown = [index for index, annotation in enumerate(annotations) if annotation]
    for index in shown:
        _draw_shadow(picture, placed[index])
    for index in shown:
        painted[index].layer.blend_onto(picture)
    if obstacle:
        obstacle.blend_onto(picture)
    return [annotation for annotation in annotations if annotation] + crowds


def annotate(painted: list[PaintedPerson], in_front: np.ndarray) -> list[dict[str, Any] | None]:
    """Finds out what can be seen of each person, from the nearest to the farthest.

    Args:
        painted: Persons from back to front.
        in_front: (H, W) bool, what a thing in front of everybody covers.

    Returns:
        For each person its annotation without ids, or None for one of whom too little can be seen: such a person
        shall not be drawn, and hides nobody.
    """
    covered = in_front.copy()
    annotations: list[dict[str, Any] | None] = []
    for person in reversed(painted):
        silhouette = person.layer.silhouette
        visible = np.count_nonzero(silhouette & ~covered)
        if visible == 0 or visible < MIN_VISIBLE_FRACTION * np.count_nonzero(silhouette):
            annotations.append(None)
        else:
            annotations.append(_annotation(person, silhouette, covered))
            covered |= silhouette
    return annotations[::-1]


def _annotation(person: PaintedPerson, silhouette: np.ndarray, covered: np.ndarray) -> dict[str, Any]:
    size_px = len(silhouette)
    keypoints: list[float | int] = []
    for (x, y), hidden in zip(person.keypoints_xy.round(2).tolist(), person.hidden_by_self.tolist(), strict=True):
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


def _place_persons(rng: np.random.Generator, size_px: int, max_persons: int) -> list[Placed]:
    """Finds places for one to `max_persons` persons that overlap moderately; who stands lower is nearer, so later."""
    wanted = 1 + min(int(rng.exponential(MEAN_FURTHER_PERSONS)), max_persons - 1)
    low, high = HEIGHT_FRACTIONS
    if wanted > 2:
        high = MAX_HEIGHT_FRACTION_OF_MANY
    placed: list[Placed] = []
    for _ in range(wanted):
        for _ in range(PLACING_ATTEMPTS):
            candidate = _sample_place(rng, size_px, size_px * rng.uniform(low, high))
            if all(_overlaps_moderately(candidate.box_xyxy, other.box_xyxy) for other in placed):
                placed.append(candidate)
                break
    return sorted(placed, key=lambda person: float(person.box_xyxy[3]))


def _sample_place(rng: np.random.Generator, size_px: int, height_px: float) -> Placed:
    """Puts a new figure inside the image, or, for some, partly beyond its left, right or lower edge."""
    figure = sample_figure(rng)
    low, high = (extent * height_px for extent in figure.extent())
    fits = np.sort(np.stack([-low, size_px - high]), axis=0)
    origin = rng.uniform(fits[0], fits[1])
    if rng.random() < TRUNCATED_FRACTION:
        beyond = rng.uniform(0.1, 0.4) * (high - low)
        edge = int(rng.integers(3))
        if edge == 0:
            origin[0] = -low[0] - beyond[0]
        elif edge == 1:
            origin[0] = size_px - high[0] + beyond[0]
        else:
            origin[1] = size_px - high[1] + beyond[1]
    return Placed(figure, height_px, origin, np.concatenate([origin + low, origin + high]))


def _overlaps_moderately(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> bool:
    shared_sides = np.minimum(a_xyxy[2:], b_xyxy[2:]) - np.maximum(a_xyxy[:2], b_xyxy[:2])
    shared = float(shared_sides.clip(0).prod())
    area_a, area_b = (float((box[2:] - box[:2]).prod()) for box in (a_xyxy, b_xyxy))
    return shared <= MAX_BOX_IOU * (area_a + area_b - shared) and shared <= MAX_BOX_COVER * min(area_a, area_b)


def _draw_shadow(picture: np.ndarray, person: Placed) -> None:
    ankles = person.origin_xy + person.height_px * person.figure.keypoints_xy[LEFT_ANKLE : LEFT_ANKLE + 2]
    centre = np.array([ankles[:, 0].mean(), ankles[:, 1].max() + 0.03 * person.height_px])
    half_width = 0.5 * abs(ankles[0, 0] - ankles[1, 0]) + 0.08 * person.height_px
    paint_shadow(picture, centre, (float(half_width), 0.028 * person.height_px))


def _draw_crowd(rng: np.random.Generator, picture: np.ndarray, size_px: int) -> dict[str, Any]:
    """Draws a cluster of tiny people that nobody would annotate one by one, as one region."""
    together = np.zeros((size_px, size_px), bool)
    centre = size_px * np.array([rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.4)])
    for _ in range(int(rng.integers(8, 15))):
        person = paint_person(
            sample_figure(rng),
            sample_outfit(rng),
            origin_xy=centre + size_px * rng.normal(0, (0.05, 0.015)),
            height_px=size_px * rng.uniform(0.12, 0.16),
            size_px=size_px,
        )
        person.layer.blend_onto(picture)
        together |= person.layer.silhouette
    return {
        "bbox": [float(side) for side in cv2.boundingRect(together.astype(np.uint8))],
        "area": float(np.count_nonzero(together)),
        "iscrowd": 1,
        "keypoints": [0] * (3 * COCO_PERSON.n_keypoints),
        "num_keypoints": 0,
    }
