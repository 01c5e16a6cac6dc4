"""Annotations and COCO results as arrays, checked: what would be silently misread is refused by name."""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from posefoundry.errors import PosefoundryError
from posefoundry.skeleton import AREA_PER_BOX_AREA

AreaRule = Literal["annotation", "annotation_else_box", "box"]
AREA_RULES: dict[AreaRule, str] = {
    "annotation": "ground truth: area of the annotation; detections: area of the box",
    "annotation_else_box": f"ground truth: area of the annotation, {AREA_PER_BOX_AREA} x area of the box where it has "
    "none; detections: area of the box",
    "box": f"ground truth: {AREA_PER_BOX_AREA} x area of the box; detections: area of the box",
}
# Ingest keeps persons of area 0, and one of them should not keep all others from being judged.
PIPELINE_AREA_RULE: AreaRule = "annotation_else_box"
TRUNCATION_MARGIN_PX = 1.0
_LARGEST_NUMBER = 1e12  # beyond any picture, and squares of it are still far from overflowing


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
        """Tells which of (B, 4) boxes reach the border of their image, whose (B,) place is given."""
        return touches_border(boxes_xywh, self.image_sizes_wh[image])


def touches_border(boxes_xywh: np.ndarray, sizes_wh: np.ndarray) -> np.ndarray:
    """Tells which of (B, 4) boxes reach the border of their (B, 2) image, to within `TRUNCATION_MARGIN_PX`."""
    low, high = boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]
    return ((low <= TRUNCATION_MARGIN_PX) | (high >= sizes_wh - TRUNCATION_MARGIN_PX)).any(axis=1)


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
            the annotation's, or `AREA_PER_BOX_AREA` times the box where it has none; or always the latter. A person
            who counts and whose box has no area either is refused.

    Raises:
        PosefoundryError: The content is not of COCO's form, an id comes twice, an annotation names an unknown image or
            category, lacks what it needs, or has not K * 3 finite keypoint numbers.
    """
    require_coco_form(content, where)
    images, annotations = content["images"], content["annotations"]
    image_place = _places(_ids(images, "images", where))
    category_place = _places(_ids(content["categories"], "categories", where))
    _ids([entry for entry in annotations if "id" in entry], "annotations", where)
    named = [
        f"{where}: annotation {entry['id']}" if "id" in entry else f"{where}: annotations[{i}]"
        for i, entry in enumerate(annotations)
    ]
    for name, entry in zip(named, annotations, strict=True):
        for key, place in (("image_id", image_place), ("category_id", category_place)):
            value = entry.get(key)
            if not _is_id(value) or value not in place:
                raise PosefoundryError(
                    f"{name}: expected an image and a category of the same file, got {key} {_shown(value)}, which is "
                    f"none of the {len(place)} there. Correct or remove it."
                )
    nobody = [0] * (3 * n_keypoints)  # as of a person nobody put keypoints on
    points = _numbers([entry.get("keypoints") or nobody for entry in annotations], 3 * n_keypoints)
    if isinstance(points, int):
        raise PosefoundryError(
            f"{named[points]}: expected {3 * n_keypoints} finite keypoint numbers, x, y, v of each of {n_keypoints} "
            f"keypoints, got {_shown(annotations[points].get('keypoints'))}."
        )
    boxes = _numbers([entry.get("bbox") for entry in annotations], 4)
    if isinstance(boxes, int):
        raise PosefoundryError(
            f"{named[boxes]}: expected a finite 'bbox', [x, y, width, height] in px, got "
            f"{_shown(annotations[boxes].get('bbox'))}."
        )
    points = points.reshape(-1, n_keypoints, 3)
    labelled = np.count_nonzero(points[..., 2] > 0, axis=1).tolist()
    is_crowd = np.array([_count(e, "iscrowd", 0, name) > 0 for e, name in zip(annotations, named, strict=True)], bool)
    counts = [
        _count(entry, "num_keypoints", n, name) for entry, n, name in zip(annotations, labelled, named, strict=True)
    ]
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


def require_coco_form(content: Any, where: str) -> None:
    """Checks that content has COCO's three lists of objects, and keypoint names that are names.

    Raises:
        PosefoundryError: It has not.
    """
    if not isinstance(content, dict):
        raise PosefoundryError(
            f"{where}: expected a COCO annotation file, an object with images, annotations and categories, got "
            f"{_kind(content)}."
        )
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list):
            got = (
                f"{_kind(entries)} there" if key in content else f"the keys {', '.join(map(repr, content)) or '(none)'}"
            )
            raise PosefoundryError(
                f"{where}: expected a list {key!r}, as COCO annotation files have, got {got}. Name the annotations, "
                "not the results."
            )
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise PosefoundryError(f"{where}: {key}[{number}]: expected an object, got {_kind(entry)}.")
    for number, category in enumerate(content["categories"]):
        names = category.get("keypoints") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise PosefoundryError(
                f"{where}: categories[{number}]: expected keypoints as a list of names, got {_shown(names)}."
            )


def read_detections(detections: Sequence[dict[str, Any]], truth: GroundTruth, where: str = "detections") -> Detections:
    """Turns the entries of a COCO results file into arrays.

    Args:
        detections: Objects with `image_id`, `category_id`, `keypoints`, `score` and, all of them or none, `bbox`.
        truth: What they are to be compared with.
        where: What they are called in messages.

    Raises:
        PosefoundryError: A detection is for an unknown image or category, or its numbers are not finite or not as
            many as they must be; or some detections have a box and some have not.
    """
    n_keypoints = truth.keypoints_xy.shape[1]
    keys = ("image_id", "category_id", "keypoints", "score")
    if not isinstance(detections, list | tuple):
        raise PosefoundryError(
            f"{where}: expected a COCO results file, a list of objects with {', '.join(keys)}, got "
            f"{_kind(detections)}. Name the results, not the annotations."
        )
    for i, entry in enumerate(detections):
        missing = [key for key in keys if key not in entry] if isinstance(entry, dict) else None
        if missing != []:
            got = f"no {missing[0]!r} among {', '.join(map(repr, entry)) or 'none'}" if missing else _kind(entry)
            raise PosefoundryError(
                f"{where}[{i}]: expected an object with the keys of a COCO keypoint result ({', '.join(keys)}), "
                f"got {got}."
            )
    image = _places_of(detections, "image_id", truth.image_ids, where)
    category = _places_of(detections, "category_id", truth.category_ids, where)
    with_box = [bool(entry.get("bbox")) for entry in detections]
    if any(with_box) and not all(with_box):
        raise PosefoundryError(
            f"{where}: expected a bbox with every detection or with none, got {sum(with_box)} of {len(with_box)} with "
            f"one; {where}[{with_box.index(False)}] has none."
        )
    scores = _numbers([[entry["score"]] for entry in detections], 1)
    points = _numbers([entry["keypoints"] for entry in detections], 3 * n_keypoints)
    boxes = _numbers([entry["bbox"] for entry in detections], 4) if any(with_box) else None
    # A NaN distance would count as a match: pycocotools asks whether it is below the threshold, and no NaN is.
    for key, values, expected in (
        ("score", scores, "a finite number as score"),
        ("keypoints", points, f"{3 * n_keypoints} finite keypoint numbers, x, y, score of each of {n_keypoints}"),
        ("bbox", boxes, "4 finite box numbers, [x, y, width, height] in px"),
    ):
        if isinstance(values, int):
            entry = detections[values]
            raise PosefoundryError(
                f"{where}[{values}], of image {entry['image_id']!r}: expected {expected}, got {_shown(entry[key])}."
            )
    assert isinstance(scores, np.ndarray) and isinstance(points, np.ndarray) and not isinstance(boxes, int)
    # (M, K, 2), but in memory of each keypoint all x lie together, and all y, as they are worked with.
    xy = np.ascontiguousarray(points.reshape(-1, n_keypoints, 3)[..., :2].transpose(1, 2, 0)).transpose(2, 0, 1)
    if boxes is None:  # as pycocotools' loadRes
        low, high = (xy.min(axis=1), xy.max(axis=1)) if len(xy) else (np.zeros((0, 2)), np.zeros((0, 2)))
        boxes = np.concatenate((low, high - low), axis=1)
    return Detections(
        image=image,
        category=category,
        scores=scores[:, 0],
        keypoints_xy=xy,
        boxes_xywh=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        have_boxes=any(with_box) or not len(detections),
    )


def _areas(
    annotations: Sequence[dict[str, Any]], boxes: np.ndarray, is_ignored: np.ndarray, named: list[str], rule: AreaRule
) -> tuple[np.ndarray, int]:
    from_box = AREA_PER_BOX_AREA * boxes[:, 2] * boxes[:, 3]
    stated = np.array([_number(entry.get("area")) for entry in annotations], np.float64)
    # Nobody can be found whose area is 0, and pycocotools does not say so. An area that is ignored may be 0.
    lacking = ~np.isfinite(stated) | ((stated <= 0) & ~is_ignored)
    if rule == "annotation":
        areas, faulty = stated, lacking
        expected = "a finite 'area' above 0 px^2, which scales OKS"
        remedy = (
            f"Correct it, or take {AREA_PER_BOX_AREA} x the box instead where it is missing: area=annotation_else_box, "
            "or for everybody: area=box."
        )
    else:
        computed = lacking if rule == "annotation_else_box" else np.ones(len(stated), bool)
        areas = np.where(computed, from_box, stated)
        faulty = computed & ~is_ignored & ((boxes[:, 2:] <= 0).any(axis=1))
        expected = "a 'bbox' of a width and height above 0 px, from which the area that scales OKS is computed"
        remedy = "Correct it, or remove the annotation."
    if faulty.any():
        first = int(np.flatnonzero(faulty)[0])
        more = f" (and {int(faulty.sum()) - 1} more)" if faulty.sum() > 1 else ""
        got = annotations[first].get("area" if rule == "annotation" else "bbox")
        raise PosefoundryError(f"{named[first]}{more}: expected {expected}, got {_shown(got)}. {remedy}")
    return areas, 0 if rule == "annotation" else int(computed.sum())


def _ids(entries: Iterable[dict[str, Any]], kind: str, where: str) -> list[Any]:
    ids = []
    for number, entry in enumerate(entries):
        if not _is_id(entry.get("id")):
            got = _shown(entry["id"]) if "id" in entry else "no such key"
            raise PosefoundryError(f"{where}: {kind}[{number}]: expected an 'id', a whole number or a name, got {got}.")
        ids.append(entry["id"])
    if len({isinstance(value, str) for value in ids}) > 1:
        raise PosefoundryError(f"{where}: {kind}: expected ids that are all numbers or all names, got both.")
    repeated = [value for value, count in Counter(ids).items() if count > 1]
    if repeated:
        raise PosefoundryError(
            f"{where}: {kind}: expected each id once, got {repeated[0]!r} more than once"
            f"{f' (and {len(repeated) - 1} other ids)' if len(repeated) > 1 else ''}. Give each entry its own id."
        )
    return ids


def _is_id(value: Any) -> bool:
    """Tells whether this is a whole number, be it written as 7.0, or a name."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int | str) and not isinstance(value, bool)


def _places(ids: list[Any]) -> dict[Any, int]:
    return {value: place for place, value in enumerate(sorted(ids))}


def _places_of(detections: Sequence[dict[str, Any]], key: str, known: list[Any], where: str) -> np.ndarray:
    """Returns the place of each detection's image, or category, among the known ones."""
    place = {value: i for i, value in enumerate(known)}
    try:
        return np.array([place[entry[key]] for entry in detections], np.int64)
    except (KeyError, TypeError):  # an id that is not there, or a list, which none can be
        strange = [i for i, entry in enumerate(detections) if not _is_id(entry[key]) or entry[key] not in place]
    value = detections[strange[0]][key]
    more = f" (and {len(strange) - 1} more detections)" if len(strange) > 1 else ""
    hint = f"Evaluate detections with the annotation file of the images they were made on, where {key} is the same."
    if str(value) in map(str, known):
        hint = f"There it is a {'number' if isinstance(value, str) else 'name'}: write it so."
    raise PosefoundryError(
        f"{where}[{strange[0]}]{more}: expected a known {key}, one of the {len(place)} in the annotations, got "
        f"{_shown(value)}. {hint}"
    )


def _count(entry: dict[str, Any], key: str, default: int, name: str) -> float:
    """Returns `iscrowd` or `num_keypoints`, which may be missing."""
    value = entry.get(key)
    if value is None:
        return default
    number = _number(value)
    if not number >= 0:
        raise PosefoundryError(f"{name}: expected {key} as a number from 0, got {_shown(value)}. Correct or remove it.")
    return number


def _numbers(rows: Sequence[Any], width: int) -> "np.ndarray | int":
    """Returns (n, width) finite float64, or the index of the first row that is not `width` finite numbers."""
    flat = array("d")  # takes numbers alone, where numpy would also read them out of text
    try:
        for row in rows:
            if len(row) != width:
                break
            flat.fromlist(row if type(row) is list else list(row))
        else:
            numbers = np.frombuffer(flat, np.float64) if flat else np.empty(0)
            if not numbers.size or (numbers.min() >= -_LARGEST_NUMBER and numbers.max() <= _LARGEST_NUMBER):
                return numbers.reshape(-1, width)
    except (TypeError, ValueError, OverflowError):
        pass
    return next((i for i, row in enumerate(rows) if not _are_numbers(row, width)), 0)


def _are_numbers(row: Any, width: int) -> bool:
    return (
        isinstance(row, list | tuple)
        and len(row) == width
        and all(abs(_number(value)) <= _LARGEST_NUMBER for value in row)
    )


def _number(value: Any) -> float:
    try:
        return float("nan") if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    """Returns a value as it is told in a message: of a long list its length and beginning."""
    text = repr(value)
    if len(text) <= 80:
        return text
    return f"{len(value)} values, {text[:60]}..." if isinstance(value, list | tuple) else f"{text[:60]}..."
