"""The data as tables that can be checked: one row a person, one an image, one a split.

What the label files say is read again here and compared with the annotations by a computation of its own: a check that
used the conversion's code would pass on the conversion's faults.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posefoundry.datasets.coco import VISIBILITIES, CocoKeypoints
from posefoundry.datasets.convert import read_raw_annotations
from posefoundry.datasets.receipt import ReceiptLine, read_receipt
from posefoundry.datasets.yolo import DatasetSpec, image_files, read_dataset_yaml
from posefoundry.files import read_json

if TYPE_CHECKING:
    import pandas as pd

PERSON_COLUMNS = (
    "outcome", "clipped", "label_fault", "category_id", "label_category_id", "box_outside", "keypoints_outside",
    "odd_visibilities", "num_keypoints", "labelled_keypoints", "area", "area_of_box", "keypoints_off_box",
    "label_difference",
)  # fmt: skip
IMAGE_COLUMNS = (
    "image_exists", "in_annotations", "label_exists", "size", "size_of_file", "bytes", "bytes_of_file", "receipt_lines",
    "label_lines", "sha256", "also_in_split", "repeats",
)  # fmt: skip
SPLIT_COLUMNS = ("persons", "set_aside_fraction", "images_set_aside")


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What the checks look at; the index of each table says where a row comes from.

    Attributes:
        persons: A row for each annotation that must have a label line. Lengths are fractions of the image.
        images: A row for each image of the annotations or of the YOLO folder.
        splits: A row a split, and `all`.
    """

    persons: "pd.DataFrame"
    images: "pd.DataFrame"
    splits: "pd.DataFrame"


def build_tables(raw: Path, yolo: Path, receipt: Path) -> Tables:
    """Joins annotations, receipt, label files, image files and manifest.

    Raises:
        PosefoundryError: One of the files that explain the others is missing or malformed: an annotation file, the
            receipt, the manifest, set_aside.json, dataset.yaml.
    """
    sources = read_raw_annotations(raw)
    spec = read_dataset_yaml(yolo / "dataset.yaml")
    lines = read_receipt(receipt)
    files_of_manifest = {record["path"]: record for record in read_json(raw / "manifest.json")["files"]}
    texts = {split: _label_texts(yolo, split, source) for split, source in sources.items()}
    return Tables(
        persons=_persons(sources, spec, lines, texts),
        images=_images(sources, yolo, lines, texts, files_of_manifest),
        splits=_splits(sources, lines, read_json(raw / "set_aside.json")),
    )


LabelTexts = dict[str, list[str] | None]


def _label_texts(yolo: Path, split: str, source: CocoKeypoints) -> LabelTexts:
    """Returns the lines of each image's label file by image name; None where there is no file."""
    texts: LabelTexts = {}
    for image in source.images:
        path = yolo / "labels" / split / f"{Path(image['file_name']).stem}.txt"
        try:
            texts[image["file_name"]] = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            texts[image["file_name"]] = None
    return texts


def _persons(
    sources: dict[str, CocoKeypoints], spec: DatasetSpec, lines: list[ReceiptLine], texts: dict[str, LabelTexts]
) -> "pd.DataFrame":
    line_of = {(line.split, line.annotation_id): line for line in lines}
    rows = {}
    for split, source in sources.items():
        images = {image["id"]: image for image in source.images}
        for annotation in source.annotations:
            line = line_of.get((split, annotation["id"]))
            if line is None or line.outcome != "left_out":
                image = images[annotation["image_id"]]
                where = f"{split}/{image['file_name']}, annotation {annotation['id']}"
                rows[where] = _person_row(annotation, image, line, texts[split][image["file_name"]], spec)
    return _frame(rows, PERSON_COLUMNS)


def _person_row(
    annotation: dict[str, Any],
    image: dict[str, Any],
    line: ReceiptLine | None,
    label_lines: list[str] | None,
    spec: DatasetSpec,
) -> dict[str, Any]:
    size_wh = np.array([image["width"], image["height"]], dtype=np.float64)
    keypoints_xyv = np.array(annotation["keypoints"], dtype=np.float64).reshape(-1, 3)
    labelled = keypoints_xyv[:, 2] > 0
    row: dict[str, Any] = {
        "outcome": line and line.outcome,
        "clipped": line and line.reason,
        "category_id": annotation["category_id"],
        "num_keypoints": annotation["num_keypoints"],
        "labelled_keypoints": int(labelled.sum()),
        "area": np.nan if annotation.get("area") is None else float(annotation["area"]),
    }
    x, y, width, height = annotation["bbox"]
    if width > 0 and height > 0:
        row["area_of_box"] = row["area"] / (width * height)
        off_xy = _distance_outside(keypoints_xyv[labelled, :2], np.array([x, y]), np.array([x + width, y + height]))
        row["keypoints_off_box"] = float(off_xy.max(initial=0.0) / max(width, height))
    label = _label_numbers(label_lines, line, spec)
    if isinstance(label, str):
        return row | {"label_fault": label}
    box_cxcywhn, keypoints_xyvn = label[1:5], label[5:].reshape(-1, 3)
    corners = np.concatenate([box_cxcywhn[:2] - box_cxcywhn[2:] / 2, box_cxcywhn[:2] + box_cxcywhn[2:] / 2])
    expected_corners = np.clip(np.array([x, y, x + width, y + height]) / np.tile(size_wh, 2), 0, 1)
    expected_keypoints = keypoints_xyv / [*size_wh, 1]
    in_image = ((expected_keypoints[:, :2] >= 0) & (expected_keypoints[:, :2] <= 1)).all(axis=1)
    expected_keypoints[~(labelled & in_image)] = 0
    class_id = int(label[0]) if label[0] == int(label[0]) else -1
    return row | {
        "label_category_id": spec.category_ids[class_id] if 0 <= class_id < len(spec.category_ids) else -1,
        "box_outside": float(_distance_outside(corners, 0.0, 1.0).max()),
        "keypoints_outside": float(_distance_outside(keypoints_xyvn[:, :2], 0.0, 1.0).max()),
        "odd_visibilities": int((~np.isin(keypoints_xyvn[:, 2], VISIBILITIES)).sum()),
        "label_difference": float(
            max(np.abs(corners - expected_corners).max(), np.abs(keypoints_xyvn - expected_keypoints).max())
        ),
    }


def _distance_outside(values: np.ndarray, low: Any, high: Any) -> np.ndarray:
    return np.maximum(np.maximum(low - values, values - high), 0.0)


def _label_numbers(label_lines: list[str] | None, line: ReceiptLine | None, spec: DatasetSpec) -> np.ndarray | str:
    """Returns the numbers of a person's label line whatever their values, or why there are none."""
    if line is None or line.line is None:
        return "the receipt names no label line"
    if label_lines is None:
        return "the label file is missing"
    if not 1 <= line.line <= len(label_lines):
        return f"line {line.line} of the label file is missing"
    fields = label_lines[line.line - 1].split()
    expected = 5 + spec.kpt_shape[0] * spec.kpt_shape[1]
    if len(fields) != expected:
        return f"line {line.line} has {len(fields)} numbers instead of {expected}"
    try:
        numbers = np.array(fields, dtype=np.float64)
    except ValueError:
        return f"line {line.line} holds something else than numbers"
    return numbers if np.isfinite(numbers).all() else f"line {line.line} holds NaN or infinity"


def _images(
    sources: dict[str, CocoKeypoints],
    yolo: Path,
    lines: list[ReceiptLine],
    texts: dict[str, LabelTexts],
    files_of_manifest: dict[str, dict[str, Any]],
) -> "pd.DataFrame":
    receipt_lines = Counter((line.split, line.image) for line in lines if line.outcome != "left_out")
    rows = {}
    for split, source in sources.items():
        for image in source.images:
            name = image["file_name"]
            path = yolo / "images" / split / name
            recorded = files_of_manifest.get(f"images/{split}/{name}", {})
            text = texts[split][name]
            rows[f"{split}/{name}"] = {
                "image_exists": path.is_file(),
                "in_annotations": True,
                "label_exists": text is not None,
                "size": f"{image['width']}x{image['height']}",
                "size_of_file": _size_of_file(path),
                "bytes": recorded.get("bytes"),
                "bytes_of_file": path.stat().st_size if path.is_file() else None,
                "receipt_lines": receipt_lines[split, name],
                "label_lines": None if text is None else sum(bool(line.strip()) for line in text),
                "sha256": recorded.get("sha256"),
            }
        for path in image_files(yolo / "images" / split):
            rows.setdefault(f"{split}/{path.name}", {"in_annotations": False})
    _mark_repeats(rows)
    return _frame(rows, IMAGE_COLUMNS)


def _mark_repeats(rows: dict[str, dict[str, Any]]) -> None:
    """Notes beside each image another one of the same content, in another split or in its own."""
    same_content: dict[str, list[str]] = defaultdict(list)
    for where, row in rows.items():
        if row.get("sha256"):
            same_content[row["sha256"]].append(where)
    for places in same_content.values():
        for where in places:
            split = where.partition("/")[0]
            others = [other for other in places if other != where]
            rows[where]["also_in_split"] = next((o for o in others if o.partition("/")[0] != split), None)
            rows[where]["repeats"] = next((o for o in others if o.partition("/")[0] == split), None)


def _size_of_file(path: Path) -> str | None:
    """Returns an image's size in px as its header states it, without decoding the rest; None where there is no file."""
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            return f"{image.width}x{image.height}"
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return "unreadable"


def _splits(
    sources: dict[str, CocoKeypoints], lines: list[ReceiptLine], set_aside: list[dict[str, Any]]
) -> "pd.DataFrame":
    persons = Counter(line.split for line in lines if line.outcome != "left_out")
    images_set_aside = Counter(record["split"] for record in set_aside if record["annotation"] is None)
    annotations_set_aside = sum(record["annotation"] is not None for record in set_aside)
    annotations = annotations_set_aside + sum(len(source.annotations) for source in sources.values())
    rows: dict[str, dict[str, Any]] = {
        split: {"persons": persons[split], "images_set_aside": images_set_aside[split]} for split in sources
    }
    rows["all"] = {
        "persons": persons.total(),
        "images_set_aside": images_set_aside.total(),
        "set_aside_fraction": annotations_set_aside / max(annotations, 1),
    }
    return _frame(rows, SPLIT_COLUMNS)


def _frame(rows: dict[str, dict[str, Any]], columns: tuple[str, ...]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=list(columns))
