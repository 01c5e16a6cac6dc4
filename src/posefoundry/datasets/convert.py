"""COCO keypoints -> YOLO pose: one label line a person, and a receipt that accounts for every annotation."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from posefoundry.datasets.coco import (
    CocoKeypoints,
    Fault,
    SetAside,
    flat_name,
    load_coco_keypoints,
    set_faults_aside,
    without_images,
)
from posefoundry.datasets.receipt import Outcome, ReceiptLine, check_complete
from posefoundry.datasets.yolo import SPLITS, format_dataset_yaml, format_label_line
from posefoundry.errors import PosefoundryError
from posefoundry.files import atomic_directory, read_json, write_text_atomic

ImageTransfer = Literal["hardlink", "symlink", "copy"]

# COCO writes boxes with two decimals: what lies less than one of them outside is rounding, not a box that was cut.
BOX_ROUNDING_PX = 0.01


@dataclass(frozen=True, kw_only=True)
class Person:
    """One annotation in YOLO's terms.

    Attributes:
        box_cxcywhn: (4,) centre, width and height as fractions of the image.
        keypoints_xyvn: (K, 3) x and y as fractions of the image, and visibility; all 0 where not labelled.
        clipped: What was cut off at the image's border: `box`, `keypoints`, `box and keypoints`, or None.
    """

    box_cxcywhn: np.ndarray
    keypoints_xyvn: np.ndarray
    clipped: str | None


def person_of(annotation: dict[str, Any], image_size_wh: tuple[int, int], *, min_box_side_px: float) -> Person | str:
    """Turns a COCO annotation into a person, or says in a word why there is none to be learned from.

    The box is clipped to the image. A keypoint outside the image becomes not labelled.

    Args:
        annotation: With `bbox` as x, y, w, h and `keypoints` as x, y, v, all in px, `iscrowd`, and `area` where it
            was measured.
        image_size_wh: Width and height of the image in px.
        min_box_side_px: A person whose clipped box is narrower or lower than this is left out.

    Returns:
        The person, or the reason: crowd, no_keypoints, zero_area, box_outside_image, too_small.
    """
    if annotation.get("iscrowd"):
        return "crowd"
    size_wh = np.array(image_size_wh, dtype=np.float64)
    keypoints_xyv = np.array(annotation["keypoints"], dtype=np.float64).reshape(-1, 3)
    labelled = keypoints_xyv[:, 2] > 0
    inside = ((keypoints_xyv[:, :2] >= 0) & (keypoints_xyv[:, :2] <= size_wh)).all(axis=1)
    x, y, width, height = annotation["bbox"]
    if not labelled.any():
        return "no_keypoints"
    area = annotation.get("area")
    if width <= 0 or height <= 0 or (area is not None and area <= 0):
        return "zero_area"
    corners_xyxy = np.array([x, y, x + width, y + height], dtype=np.float64)
    clipped_xyxy = np.clip(corners_xyxy, 0, np.tile(size_wh, 2))
    clipped_wh = clipped_xyxy[2:] - clipped_xyxy[:2]
    if not (clipped_wh > 0).all():
        return "box_outside_image"
    if not (clipped_wh >= min_box_side_px).all():
        return "too_small"
    if not (labelled & inside).any():
        return "no_keypoints"
    keypoints_xyv[~(labelled & inside)] = 0
    cut = {
        "box": bool((np.abs(clipped_xyxy - corners_xyxy) > BOX_ROUNDING_PX).any()),
        "keypoints": bool((labelled & ~inside).any()),
    }
    return Person(
        box_cxcywhn=np.concatenate([(clipped_xyxy[:2] + clipped_xyxy[2:]) / 2 / size_wh, clipped_wh / size_wh]),
        keypoints_xyvn=keypoints_xyv / [*size_wh, 1],
        clipped=" and ".join(name for name, was_cut in cut.items() if was_cut) or None,
    )


def convert_dataset(
    raw: Path, yolo: Path, *, images: ImageTransfer = "hardlink", min_box_side_px: float = 1.0
) -> list[ReceiptLine]:
    """Writes the YOLO form of a COCO data folder, whole or not at all.

    The class index of a category is its place among the category ids in ascending order.

    Args:
        raw: Folder with `annotations/<split>.json`, `images/<split>/` and `set_aside.json`; never changed.
        yolo: Folder that is replaced by `images/<split>/`, `labels/<split>/` and `dataset.yaml`.
        images: How images get there: `hardlink` copies where the disk cannot link, `symlink` is relative.
        min_box_side_px: See `person_of`.

    Returns:
        The receipt: a line for each annotation, in the order of the sources, those that were set aside last.

    Raises:
        PosefoundryError: A file is missing or malformed, the splits disagree about their categories, two images share
            one label file, or the receipt does not account for each annotation.
    """
    sources = read_raw_annotations(raw)
    set_aside = [record for record in read_json(raw / "set_aside.json") if record["annotation"] is not None]
    folders = {split: raw / "images" / split for split in sources}
    return _write_dataset(sources, folders, set_aside, yolo, images=images, min_box_side_px=min_box_side_px)


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """A COCO keypoint file and the folder that its `file_name`s count from."""

    annotations: Path
    images: Path


def convert_coco_files(
    files: Mapping[str, CocoFile], yolo: Path, *, images: ImageTransfer = "hardlink", min_box_side_px: float = 1.0
) -> list[ReceiptLine]:
    """Writes the YOLO form of COCO files as they were downloaded; see `convert_dataset`.

    Records with a fault, and images without a file, are left out and stand in the receipt.

    Args:
        files: By split, `train` among them.
        yolo: As in `convert_dataset`.
        images: As in `convert_dataset`.
        min_box_side_px: As in `convert_dataset`.

    Raises:
        PosefoundryError: As `convert_dataset`, or a split has no image left.
    """
    sources: dict[str, CocoKeypoints] = {}
    set_aside: list[SetAside] = []
    for split, file in files.items():
        usable, faults = set_faults_aside(load_coco_keypoints(file.annotations), split)
        missing = {
            image["id"]: Fault("image_missing", f"{file.images / image['file_name']} does not exist")
            for image in usable.images
            if not (file.images / image["file_name"]).is_file()
        }
        sources[split], lost = without_images(usable, missing, split)
        set_aside += faults + lost
        if not sources[split].images:
            raise PosefoundryError(f"{file.annotations}: expected its images in {file.images}, found none of them.")
        if _schema(sources[split]) != _schema(next(iter(sources.values()))):
            raise PosefoundryError(
                f"{file.annotations}: expected the categories of {next(iter(files.values())).annotations}, with the "
                "same ids, names and keypoints, got others. Export both from the same project."
            )
    records = [record.to_dict() for record in set_aside if record.annotation is not None]
    folders = {split: file.images for split, file in files.items()}
    return _write_dataset(sources, folders, records, yolo, images=images, min_box_side_px=min_box_side_px)


def _write_dataset(
    sources: Mapping[str, CocoKeypoints],
    image_folders: Mapping[str, Path],
    set_aside: list[dict[str, Any]],
    yolo: Path,
    *,
    images: ImageTransfer,
    min_box_side_px: float,
) -> list[ReceiptLine]:
    first = next(iter(sources.values()))
    categories = sorted(first.categories, key=lambda category: category["id"])
    class_of_category = {category["id"]: index for index, category in enumerate(categories)}
    receipt: list[ReceiptLine] = []
    with atomic_directory(yolo) as aside:
        for split, source in sources.items():
            receipt += _write_labels(source, split, aside / "labels" / split, class_of_category, min_box_side_px)
            (aside / "images" / split).mkdir(parents=True)
            for image in source.images:
                target = aside / "images" / split / flat_name(image["file_name"])
                _transfer(image_folders[split] / image["file_name"], target, images)
        receipt += [_set_aside_line(record) for record in set_aside]
        dataset_yaml = format_dataset_yaml(
            sources,
            class_names=[category["name"] for category in categories],
            category_ids=[category["id"] for category in categories],
            skeleton=first.skeleton,
        )
        write_text_atomic(aside / "dataset.yaml", dataset_yaml)
        annotation_ids = [(split, a["id"]) for split, source in sources.items() for a in source.annotations]
        annotation_ids += [(record["split"], record["annotation"].get("id")) for record in set_aside]
        check_complete(receipt, annotation_ids)
    return receipt


def read_raw_annotations(raw: Path) -> dict[str, CocoKeypoints]:
    """Reads the annotations of all splits as the ingest stage left them.

    Raises:
        PosefoundryError: A file is missing or malformed, holds a record that ingest would have set aside, or has other
            categories than the training split, so that a class index would mean two things.
    """
    sources: dict[str, CocoKeypoints] = {}
    for split in SPLITS:
        path = raw / "annotations" / f"{split}.json"
        sources[split], faults = set_faults_aside(load_coco_keypoints(path), split)
        if faults:
            record = faults[0].annotation or faults[0].image or {}
            raise PosefoundryError(
                f"{path}: expected what the ingest stage writes, got {len(faults)} faulty records; the first has "
                f"the id {record['id']}: {faults[0].detail}. Run the ingest stage again."
            )
        if _schema(sources[split]) != _schema(sources[SPLITS[0]]):
            raise PosefoundryError(
                f"{path}: expected the categories of {SPLITS[0]}.json, with the same ids, names and keypoints, got "
                f"{[c['name'] for c in sources[split].categories]}. Run the ingest stage again."
            )
    return sources


def _schema(content: CocoKeypoints) -> list[tuple[Any, ...]]:
    return sorted((c["id"], c["name"], *c["keypoints"]) for c in content.categories)


def _write_labels(
    source: CocoKeypoints, split: str, folder: Path, class_of_category: dict[int, int], min_box_side_px: float
) -> list[ReceiptLine]:
    """Writes one label file an image, empty where nobody is in it, and returns the split's part of the receipt."""
    folder.mkdir(parents=True)
    annotations_of_image = source.annotations_of_image()
    image_of_label: dict[str, str] = {}
    receipt: list[ReceiptLine] = []
    for image in source.images:
        file_name = flat_name(image["file_name"])
        label_name = f"{Path(file_name).stem}.txt"
        if (other := image_of_label.setdefault(label_name, file_name)) != file_name:
            raise PosefoundryError(
                f"Images {other!r} and {file_name!r} of {split} would share the label file {label_name!r}, because the "
                "YOLO format tells images apart by their name without the ending. Rename one of them."
            )
        text = ""
        seen: set[tuple[Any, ...]] = set()
        for annotation in annotations_of_image[image["id"]]:
            identity = (annotation["category_id"], *annotation["bbox"], *annotation["keypoints"])
            person = person_of(annotation, (image["width"], image["height"]), min_box_side_px=min_box_side_px)
            if isinstance(person, Person) and identity in seen:
                person = "duplicate"
            if isinstance(person, Person):
                seen.add(identity)
                class_id = class_of_category[annotation["category_id"]]
                text += format_label_line(class_id, person.box_cxcywhn, person.keypoints_xyvn) + "\n"
            receipt.append(_receipt_line(split, file_name, annotation["id"], person, line=text.count("\n")))
        (folder / label_name).write_text(text, encoding="utf-8")
    return receipt


def _receipt_line(split: str, file_name: str, annotation_id: int, person: Person | str, line: int) -> ReceiptLine:
    if isinstance(person, str):
        return ReceiptLine(
            split=split, image=file_name, annotation_id=annotation_id, outcome="left_out", reason=person, line=None
        )
    outcome: Outcome = "clipped" if person.clipped else "written"
    return ReceiptLine(
        split=split, image=file_name, annotation_id=annotation_id, outcome=outcome, reason=person.clipped, line=line
    )


def _set_aside_line(record: dict[str, Any]) -> ReceiptLine:
    return ReceiptLine(
        split=record["split"],
        image=(record["image"] or {}).get("file_name"),
        annotation_id=record["annotation"].get("id"),
        outcome="left_out",
        reason=f"set_aside:{record['reason']}",
        line=None,
    )


def _transfer(source: Path, target: Path, how: ImageTransfer) -> None:
    """Brings an image to a folder that still lies aside; its place there is as deep as its final one."""
    if not source.is_file():
        raise PosefoundryError(f"{source}: the annotations name this image, found no file. Run the ingest stage again.")
    if how == "symlink":
        target.symlink_to(os.path.relpath(source.absolute(), target.parent.absolute()))
        return
    if how == "hardlink":
        try:
            target.hardlink_to(source.resolve())
            return
        except OSError:  # another disk, or one that cannot link
            pass
    shutil.copyfile(source, target)
