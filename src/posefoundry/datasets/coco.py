"""COCO keypoint files (cocodataset.org/#format-data): read, checked, written.

A file that is not of this form raises. A single image or annotation that nobody could use is set aside with its
reason, and the rest of the file stays usable.
"""

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json, write_text_atomic
from posefoundry.skeleton import Skeleton

VISIBILITIES = (0, 1, 2)  # not labelled, labelled but hidden, labelled and visible
_LARGEST_NUMBER = 1e12
_LONGEST_NAME_BYTES = 240  # file systems allow 255; what is derived from a name may add to it


@dataclass(frozen=True)
class CocoKeypoints:
    """The content of one COCO keypoint file.

    Attributes:
        images: Records with `id`, `file_name`, `width`, `height` in px.
        annotations: Records with `id`, `image_id`, `category_id`, `bbox` as x, y, w, h in px, `keypoints` as K
            triples x, y, v, `area` in px^2 where somebody measured it, `iscrowd`, `num_keypoints`.
        categories: Records with `id`, `name`, `keypoints`, `skeleton`; all with the same keypoints.
        info: About the data set, verbatim.
        licenses: The licences that image records refer to, verbatim.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    info: dict[str, Any] = field(default_factory=dict)
    licenses: list[dict[str, Any]] = field(default_factory=list)

    @property
    def skeleton(self) -> Skeleton:
        """The keypoint schema that all categories share."""
        return Skeleton.from_coco_category(self.categories[0])

    def annotations_of_image(self) -> dict[int, list[dict[str, Any]]]:
        """Returns each image's annotations by image id, in the file's order; images without any have an empty list."""
        by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        for annotation in self.annotations:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        return by_image


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """One image (`annotation` is None) or one annotation that was not taken over, and why."""

    split: str
    reason: str
    detail: str
    annotation: dict[str, Any] | None = None
    image: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as it stands in set_aside.json."""
        return {
            "split": self.split,
            "reason": self.reason,
            "detail": self.detail,
            "annotation": self.annotation,
            "image": self.image,
        }


@dataclass(frozen=True)
class Fault:
    """Why a record cannot be used: a stable short name to count by, and a sentence."""

    reason: str
    detail: str


def load_coco_keypoints(path: Path) -> CocoKeypoints:
    """Reads a COCO keypoint file and checks its form; single records are checked by `set_faults_aside`.

    Raises:
        PosefoundryError: The file is missing, not JSON, or not of COCO keypoint form: a missing key, a value of the
            wrong type, a category without keypoints. The message names the file and the record.
    """
    return parse_coco_keypoints(read_json(path), path)


def parse_coco_keypoints(content: Any, path: Path) -> CocoKeypoints:
    """Checks the content of a COCO keypoint file as `load_coco_keypoints` does; `path` is for messages."""
    if not isinstance(content, dict):
        raise PosefoundryError(f"{path}: expected a JSON object of COCO keypoint form, got {_kind(content)}.")
    images, annotations, categories = (_records(path, content, key) for key in ("images", "annotations", "categories"))
    for number, image in enumerate(images):
        _require(path, f"images[{number}]", image, {"id": int, "file_name": str})
    for number, annotation in enumerate(annotations):
        _require(path, f"annotations[{number}]", annotation, {"id": int, "image_id": int})
    _check_categories(path, categories)
    info, licenses = content.get("info"), content.get("licenses")
    return CocoKeypoints(
        images=images,
        annotations=annotations,
        categories=categories,
        info=info if isinstance(info, dict) else {},
        licenses=licenses if isinstance(licenses, list) else [],
    )


def write_coco_keypoints(path: Path, content: CocoKeypoints) -> None:
    """Writes a COCO keypoint file, one record a line, whole or not at all."""
    sections = [f'"info": {_json(content.info)}']
    for key in ("licenses", "images", "annotations", "categories"):
        lines = ",\n".join(_json(record) for record in getattr(content, key))
        sections.append(f'"{key}": [\n{lines}\n]' if lines else f'"{key}": []')
    write_text_atomic(path, "{" + ",\n".join(sections) + "}\n")


def set_faults_aside(content: CocoKeypoints, split: str) -> tuple[CocoKeypoints, list[SetAside]]:
    """Separates the records that can be used from those that cannot.

    Crowds, persons without keypoints or without a measured area, boxes without area or outside the image are no
    faults. A missing `iscrowd` means 0 and a missing `num_keypoints` is counted; everything else stays as it is.

    Returns:
        The usable content, and what was set aside; an annotation of an image that was set aside carries the image's
        reason.
    """
    aside: list[SetAside] = []
    kept_images, faults_of_id = _check_images(content.images, split, aside)
    categories = {category["id"] for category in content.categories}
    n_keypoints = content.skeleton.n_keypoints
    kept_annotations: dict[int, dict[str, Any]] = {}
    for annotation in content.annotations:
        image_id = annotation["image_id"]
        fault = _annotation_fault(annotation, categories, n_keypoints)
        if image_id in faults_of_id:
            fault = faults_of_id[image_id]
        elif image_id not in kept_images:
            fault = Fault("unknown_image", f"no image has the id {image_id}")
        elif annotation["id"] in kept_annotations:
            fault = Fault("duplicate_annotation_id", f"the id {annotation['id']} was seen before")
        if fault is None:
            kept_annotations[annotation["id"]] = _completed(annotation)
        else:
            image = kept_images.get(image_id)
            aside.append(
                SetAside(split=split, reason=fault.reason, detail=fault.detail, annotation=annotation, image=image)
            )
    kept = replace(content, images=list(kept_images.values()), annotations=list(kept_annotations.values()))
    return kept, aside


def without_images(
    content: CocoKeypoints, faults: dict[int, Fault], split: str
) -> tuple[CocoKeypoints, list[SetAside]]:
    """Sets the images with the given ids aside, and their annotations with them."""
    aside = [
        SetAside(split=split, reason=faults[image["id"]].reason, detail=faults[image["id"]].detail, image=image)
        for image in content.images
        if image["id"] in faults
    ]
    images = {image["id"]: image for image in content.images}
    for annotation in content.annotations:
        if fault := faults.get(annotation["image_id"]):
            image = images[annotation["image_id"]]
            aside.append(
                SetAside(split=split, reason=fault.reason, detail=fault.detail, annotation=annotation, image=image)
            )
    return only_images(content, set(images) - set(faults)), aside


def only_images(content: CocoKeypoints, image_ids: set[int]) -> CocoKeypoints:
    """Returns the part of the content that belongs to the given images."""
    return replace(
        content,
        images=[image for image in content.images if image["id"] in image_ids],
        annotations=[a for a in content.annotations if a["image_id"] in image_ids],
    )


def _check_images(
    images: list[dict[str, Any]], split: str, aside: list[SetAside]
) -> tuple[dict[int, dict[str, Any]], dict[int, Fault]]:
    """Returns the usable images by id, and the fault of each id that has no usable image."""
    names_of_id: dict[int, set[str]] = defaultdict(set)
    for image in images:
        names_of_id[image["id"]].add(image["file_name"])
    kept: dict[int, dict[str, Any]] = {}
    seen_names: set[str] = set()
    faults_of_id: dict[int, Fault] = {}
    for image in images:
        fault = _image_fault(image)
        names = names_of_id[image["id"]]
        if len(names) > 1:  # nobody can tell which of the files the annotations are about
            fault = Fault("duplicate_image_id", f"the id {image['id']} stands for {len(names)} files")
        elif image["id"] in kept:
            fault = Fault("duplicate_image_id", f"the id {image['id']} was seen before")
        elif fault is None and flat_name(image["file_name"]) in seen_names:
            fault = Fault("duplicate_file_name", f"the file {image['file_name']!r} was seen before")
        if fault is None:
            kept[image["id"]] = image
            seen_names.add(flat_name(image["file_name"]))
        else:
            aside.append(SetAside(split=split, reason=fault.reason, detail=fault.detail, image=image))
            if image["id"] not in kept:
                faults_of_id[image["id"]] = fault
    return kept, faults_of_id


def flat_name(file_name: str) -> str:
    """Returns a bare file name for an image that lies in a folder of its own: `a/b.jpg` -> `a__b.jpg`."""
    return "__".join(PurePosixPath(file_name).parts)


def _is_writable_name(name: str) -> bool:
    """Refuses NUL, line breaks and the like, lone surrogates, and what is too long for a file system."""
    unusual = () if name.isprintable() else {unicodedata.category(character) for character in name}
    return not {"Cc", "Cs", "Zl", "Zp"}.intersection(unusual) and len(name.encode()) <= _LONGEST_NAME_BYTES


def _image_fault(image: dict[str, Any]) -> Fault | None:
    name = image["file_name"]
    parts = PurePosixPath(name).parts
    leaves_folder = not parts or parts[0] == "/" or ".." in parts or "\\" in name
    if leaves_folder or not _is_writable_name(flat_name(name)):
        return Fault("unsafe_file_name", f"{name!r} is not the name of a file below the image folder")
    if not all(type(image.get(side)) is int and image[side] > 0 for side in ("width", "height")):
        return Fault(
            "image_size_missing",
            f"expected width and height in px, got {image.get('width')!r} and {image.get('height')!r}",
        )
    return None if _is_json(image) else Fault("not_finite", "the record holds NaN or infinity")


def _annotation_fault(annotation: dict[str, Any], category_ids: set[int], n_keypoints: int) -> Fault | None:
    category, keypoints = annotation.get("category_id"), annotation.get("keypoints")
    if type(category) is not int or category not in category_ids:
        return Fault("unknown_category", f"no category has the id {category!r}")
    if not _are_numbers(annotation.get("bbox"), 4):
        return Fault("bbox_invalid", f"expected bbox as 4 finite numbers, got {annotation.get('bbox')!r}")
    if not isinstance(keypoints, list) or len(keypoints) != 3 * n_keypoints:
        got = f"{len(keypoints)} values" if isinstance(keypoints, list) else _kind(keypoints)
        return Fault("keypoints_length", f"expected {n_keypoints} keypoints of 3 values, got {got}")
    if not _are_numbers(keypoints, 3 * n_keypoints):
        return Fault("keypoints_not_finite", "expected finite numbers in keypoints")
    if odd := [v for v in keypoints[2::3] if v not in VISIBILITIES]:
        return Fault("visibility_invalid", f"expected the visibility 0, 1 or 2, got {odd[0]!r}")
    if annotation.get("iscrowd", 0) not in (0, 1):
        return Fault("iscrowd_invalid", f"expected iscrowd as 0 or 1, got {annotation['iscrowd']!r}")
    if annotation.get("area") is not None and not _are_numbers([annotation["area"]], 1):
        return Fault("area_invalid", f"expected area in px^2 as a finite number, got {annotation['area']!r}")
    is_judged = not annotation.get("iscrowd", 0) and any(v > 0 for v in keypoints[2::3])
    if annotation.get("area") is None and is_judged and min(annotation["bbox"][2:]) <= 0:
        return Fault("area_missing", "expected an area, or a box with a width and a height to take it from")
    return None if _is_json(annotation) else Fault("not_finite", "the record holds NaN or infinity")


def _completed(annotation: dict[str, Any]) -> dict[str, Any]:
    labelled = sum(v > 0 for v in annotation["keypoints"][2::3])
    return {"iscrowd": 0, "num_keypoints": labelled} | annotation


def _records(path: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    records = content.get(key)
    if not isinstance(records, list):
        got = _kind(records) if key in content else f"only the keys {', '.join(map(repr, content)) or '(none)'}"
        raise PosefoundryError(f"{path}: expected a list {key!r}, as COCO keypoint files have, got {got}.")
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise PosefoundryError(f"{path}: expected {key}[{number}] to be an object, got {_kind(record)}.")
    return records


def _require(path: Path, where: str, record: dict[str, Any], types: dict[str, type]) -> None:
    for key, expected in types.items():
        if type(record.get(key)) is not expected:
            known = f" (id {record['id']!r})" if key != "id" and "id" in record else ""
            got = f"{record[key]!r}" if key in record else "no such key"
            raise PosefoundryError(f"{path}: {where}{known}: expected {key!r} as {expected.__name__}, got {got}.")


def _check_categories(path: Path, categories: list[dict[str, Any]]) -> None:
    if not categories:
        raise PosefoundryError(f"{path}: expected a category with keypoints, got none.")
    for number, category in enumerate(categories):
        where = f"categories[{number}]"
        _require(path, where, category, {"id": int, "name": str, "keypoints": list})
        if not all(isinstance(name, str) for name in category["keypoints"]):
            raise PosefoundryError(f"{path}: {where}: expected keypoints as names, got {category['keypoints']!r}.")
        if category["keypoints"] != categories[0]["keypoints"]:
            raise PosefoundryError(
                f"{path}: {where} ({category['name']!r}) has other keypoints than {categories[0]['name']!r}; "
                "a pose model has one set. Export the categories into files of their own."
            )
        try:
            Skeleton.from_coco_category(category)
        except (PosefoundryError, TypeError, ValueError) as error:
            raise PosefoundryError(f"{path}: {where}: not a skeleton: {error}") from None
    repeated = [number for number, n in Counter(category["id"] for category in categories).items() if n > 1]
    if repeated:
        raise PosefoundryError(f"{path}: expected one category an id, got several with the id {repeated[0]}.")


def _are_numbers(values: Any, count: int) -> bool:
    """Tells whether these are `count` finite numbers; the comparison is false for NaN and safe for huge integers."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(v) in (int, float) and -_LARGEST_NUMBER < v < _LARGEST_NUMBER for v in values)
    )


def _is_json(record: dict[str, Any]) -> bool:
    try:
        _json(record)
    except (ValueError, RecursionError):
        return False
    return True


def _json(record: Any) -> str:
    return json.dumps(record, allow_nan=False)


def _kind(value: Any) -> str:
    names: Iterable[tuple[type | tuple[type, ...], str]] = (
        (dict, "an object"), (list, "a list"), (str, "a string"), (bool, "true or false"), ((int, float), "a number"),
    )  # fmt: skip
    return next((name for kind, name in names if isinstance(value, kind)), "null")
