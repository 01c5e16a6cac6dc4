"""Annotations and COCO results as arrays, checked: what would be silently misread is refused by name."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np

from posefoundry.errors import PosefoundryError

AreaRule = Literal["annotation", "annotation_else_box", "box"]
# On COCO's own persons the mask fills about half of the box. The field takes this share where there are no masks.
AREA_PER_BOX_AREA = 0.53
AREA_RULES: dict[AreaRule, str] = {
    "annotation": "ground truth: area of the annotation; detections: area of the box",
    "annotation_else_box": f"ground truth: area of the annotation, {AREA_PER_BOX_AREA} x area of the box where it has "
    "none; detections: area of the box",
    "box": f"ground truth: {AREA_PER_BOX_AREA} x area of the box; detections: area of the box",
}
TRUNCATION_MARGIN_PX = 1.0


@dataclass(frozen=True)
class GroundTruth:
    """N annotations in I images, in the order of the file; K keypoints each.

    Attributes:
        image_ids: I ids in rising order.
        category_ids: C ids in rising order.
        image: (N,) place of the image.
        category: (N,) place of the category.
        keypoints_xy: (N, K, 2) px.
        visibility: (N, K) 0 not labelled, 1 hidden, 2 visible.
        boxes_xywh: (N, 4) px.
        areas: (N,) px^2, by which OKS scales distances.
        is_crowd: (N,) flags.
        is_ignored: (N,) crowds and persons without keypoints, who are neither found nor missed.
        image_sizes_wh: (I, 2) px; NaN where the file does not say.
        areas_from_box: How many areas were computed from the box, because the annotation has none.
    """

    image_ids: list[Any]
    category_ids: list[Any]
    image: np.ndarray
    category: np.ndarray
    keypoints_xy: np.ndarray
    visibility: np.ndarray
    boxes_xywh: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    is_ignored: np.ndarray
    image_sizes_wh: np.ndarray
    areas_from_box: int

    def touches_border(self, image: np.ndarray, boxes_xywh: np.ndarray) -> np.ndarray:
        """Tells which boxes reach the border of their image, to within `TRUNCATION_MARGIN_PX`."""
        sizes = self.image_sizes_wh[image]
        low, high = boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]
        return ((low <= TRUNCATION_MARGIN_PX) | (high >= sizes - TRUNCATION_MARGIN_PX)).any(axis=1)


@dataclass(frozen=True)
class Detections:
    """M entries of a COCO results file, in its order.

    Attributes:
        image: (M,) place of the image among the ground truth's ids.
        category: (M,) place of the category.
        scores: (M,) scores.
        keypoints_xy: (M, K, 2) px.
        boxes_xywh: (M, 4) px; around the keypoints where the file has no boxes.
        areas: (M,) px^2 of these boxes.
        have_boxes: Whether the file has boxes.
    """

    image: np.ndarray
    category: np.ndarray
    scores: np.ndarray
    keypoints_xy: np.ndarray
    boxes_xywh: np.ndarray
    areas: np.ndarray
    have_boxes: bool


def read_ground_truth(
    content: dict[str, Any], n_keypoints: int, where: str, area_rule: AreaRule = "annotation"
) -> GroundTruth:
    """Turns the content of a COCO keypoint file into arrays.

    Args:
        content: `images`, `annotations`, `categories`.
        n_keypoints: K.
        where: What the content is called in messages.
        area_rule: Whose area scales OKS: the annotation's, which must then be above 0 for every person who counts;
            the annotation's, or `AREA_PER_BOX_AREA` times the box where it has none; or always the latter.

    Raises:
        PosefoundryError: An id comes twice, an annotation names an unknown image or category, lacks what it needs, or
            has not K * 3 finite keypoint numbers.
    """
    images, annotations = content["images"], content["annotations"]
    image_place = _places(_ids(images, "image", where))
    category_place = _places(_ids(content["categories"], "category", where))
    _ids([entry for entry in annotations if "id" in entry], "annotation", where)
    named = [f"{where}: annotation {entry.get('id', f'number {i}')}" for i, entry in enumerate(annotations)]
    for name, entry in zip(named, annotations, strict=True):
        image_id, category_id = entry.get("image_id"), entry.get("category_id")
        if image_id not in image_place or category_id not in category_place:
            raise PosefoundryError(
                f"{name}: expected an image and a category of the same file, got image_id {image_id}, "
                f"category_id {category_id}."
            )
    nobody = [0] * (3 * n_keypoints)  # as of a person nobody put keypoints on
    points = _numbers([entry.get("keypoints") or nobody for entry in annotations], 3 * n_keypoints)
    if isinstance(points, int):
        got = annotations[points].get("keypoints")
        raise PosefoundryError(f"{named[points]}: expected {3 * n_keypoints} finite keypoint numbers, got {got}.")
    boxes = _numbers([entry.get("bbox") for entry in annotations], 4)
    if isinstance(boxes, int):
        raise PosefoundryError(f"{named[boxes]}: expected a finite 'bbox', got {annotations[boxes].get('bbox')}.")
    points = points.reshape(-1, n_keypoints, 3)
    labelled = np.count_nonzero(points[..., 2], axis=1).tolist()
    is_crowd = np.array([bool(entry.get("iscrowd")) for entry in annotations], bool)
    counts = [entry.get("num_keypoints", n) for entry, n in zip(annotations, labelled, strict=True)]
    is_ignored = is_crowd | np.array([count == 0 for count in counts], bool)
    areas, from_box = _areas(annotations, boxes, is_ignored, named, area_rule)
    sizes = np.full((len(images), 2), np.nan)
    for image in images:
        size = (image.get("width"), image.get("height"))
        if all(isinstance(side, int | float) for side in size):
            sizes[image_place[image["id"]]] = size
    return GroundTruth(
        image_ids=sorted(image_place),
        category_ids=sorted(category_place),
        image=np.array([image_place[entry["image_id"]] for entry in annotations], np.int64),
        category=np.array([category_place[entry["category_id"]] for entry in annotations], np.int64),
        keypoints_xy=points[..., :2].copy(),
        visibility=points[..., 2].copy(),
        boxes_xywh=boxes,
        areas=areas,
        is_crowd=is_crowd,
        is_ignored=is_ignored,
        image_sizes_wh=sizes,
        areas_from_box=from_box,
    )


def read_detections(detections: Sequence[dict[str, Any]], truth: GroundTruth) -> Detections:
    """Turns the entries of a COCO results file into arrays.

    Raises:
        PosefoundryError: A detection is for an unknown image or category, or its numbers are not finite or not as
            many as they must be; or some detections have a box and some have not.
    """
    n_keypoints = truth.keypoints_xy.shape[1]
    keys = ("image_id", "category_id", "keypoints", "score")
    for i, entry in enumerate(detections):
        if missing := [key for key in keys if key not in entry]:
            raise PosefoundryError(
                f"Detection {i}: expected the keys of a COCO keypoint result ({', '.join(keys)}), "
                f"found no {missing[0]!r}."
            )
    columns = []
    for key, known in (("image_id", truth.image_ids), ("category_id", truth.category_ids)):
        place = {value: i for i, value in enumerate(known)}
        if unknown := sorted({entry[key] for entry in detections} - set(place), key=str):
            shown = ", ".join(map(str, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
            raise PosefoundryError(
                f"Expected detections with a known {key} ({len(place)} in the annotations), got {shown}. "
                "Evaluate detections with the annotation file of the images they were made on."
            )
        columns.append(np.array([place[entry[key]] for entry in detections], np.int64))
    n_boxes = sum(1 for entry in detections if entry.get("bbox"))
    if 0 < n_boxes < len(detections):
        raise PosefoundryError(
            f"Expected a bbox with every detection or with none, got {n_boxes} of {len(detections)} with one."
        )
    scores = _numbers([[entry["score"]] for entry in detections], 1)
    points = _numbers([entry["keypoints"] for entry in detections], 3 * n_keypoints)
    boxes = _numbers([entry["bbox"] for entry in detections], 4) if n_boxes else None
    # A NaN distance would count as a match: pycocotools asks whether it is below the threshold, and no NaN is.
    faults = [value for value in (scores, points, boxes) if isinstance(value, int)]
    if faults or isinstance(scores, int) or isinstance(points, int) or isinstance(boxes, int):
        first = min(faults)
        entry = detections[first]
        raise PosefoundryError(
            f"Detection {first}, of image {entry['image_id']}: expected a score, 4 box and {3 * n_keypoints} "
            f"keypoint numbers, all finite, got score {entry['score']}, bbox {entry.get('bbox')}, "
            f"keypoints {entry['keypoints']}."
        )
    xy = np.ascontiguousarray(points.reshape(-1, n_keypoints, 3)[..., :2])
    if boxes is None:  # as pycocotools' loadRes
        low, high = (xy.min(axis=1), xy.max(axis=1)) if len(xy) else (np.zeros((0, 2)), np.zeros((0, 2)))
        boxes = np.concatenate((low, high - low), axis=1)
    return Detections(
        image=columns[0],
        category=columns[1],
        scores=scores[:, 0],
        keypoints_xy=xy,
        boxes_xywh=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        have_boxes=bool(n_boxes) or not len(detections),
    )


def _areas(
    annotations: Sequence[dict[str, Any]], boxes: np.ndarray, is_ignored: np.ndarray, named: list[str], rule: AreaRule
) -> tuple[np.ndarray, int]:
    from_box = AREA_PER_BOX_AREA * boxes[:, 2] * boxes[:, 3]
    if rule == "box":
        return from_box, len(annotations)
    stated = np.array([_number(entry.get("area")) for entry in annotations], np.float64)
    # Nobody can be found whose area is 0, and pycocotools does not say so. An area that is ignored may be 0.
    faulty = ~np.isfinite(stated) | ((stated <= 0) & ~is_ignored)
    if rule == "annotation_else_box":
        return np.where(faulty, from_box, stated), int(faulty.sum())
    if faulty.any():
        first = int(np.flatnonzero(faulty)[0])
        more = f" (and {int(faulty.sum()) - 1} more)" if faulty.sum() > 1 else ""
        raise PosefoundryError(
            f"{named[first]}{more}: expected a finite 'area' above 0 px^2, which scales OKS, got "
            f"{annotations[first].get('area')}. Correct it, or take {AREA_PER_BOX_AREA} x the box instead where it is "
            "missing: area=annotation_else_box, or for everybody: area=box."
        )
    return stated, 0


def _ids(entries: Iterable[dict[str, Any]], kind: str, where: str) -> list[Any]:
    ids = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or "id" not in entry:
            raise PosefoundryError(f"{where}: {kind} number {number}: expected an object with an 'id', got {entry!r}.")
        ids.append(entry["id"])
    repeated = [value for value, count in Counter(ids).items() if count > 1]
    if repeated:
        raise PosefoundryError(
            f"{where}: expected each {kind} id once, got {repeated[0]} more than once"
            f"{f' (and {len(repeated) - 1} other ids)' if len(repeated) > 1 else ''}. Give each {kind} its own id."
        )
    return ids


def _places(ids: list[Any]) -> dict[Any, int]:
    return {value: place for place, value in enumerate(sorted(ids))}


def _numbers(rows: Sequence[Any], width: int) -> "np.ndarray | int":
    """Returns (n, width) finite float64, or the index of the first row that is not `width` finite numbers."""
    try:
        if all(len(row) == width for row in rows):
            flat = np.fromiter(chain.from_iterable(rows), np.float64, width * len(rows)).reshape(-1, width)
            if np.isfinite(flat).all():
                return flat
    except (TypeError, ValueError, OverflowError):
        pass
    return next((i for i, row in enumerate(rows) if not _are_numbers(row, width)), 0)


def _are_numbers(row: Any, width: int) -> bool:
    return isinstance(row, list | tuple) and len(row) == width and all(np.isfinite(_number(value)) for value in row)


def _number(value: Any) -> float:
    try:
        return float("nan") if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
