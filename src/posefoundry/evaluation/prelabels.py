"""Hard examples as a folder that annotation tools read: pictures, COCO with predictions as pre-labels, reasons."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from posefoundry.datasets.areas import area_of_box
from posefoundry.datasets.coco import CocoKeypoints, flat_name, only_images, write_coco_keypoints
from posefoundry.datasets.cvat import skeleton_labels
from posefoundry.datasets.label_studio import labelling_config, task_of_image
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.hard_examples import HardExample
from posefoundry.files import sha256_of_file, write_json_atomic, write_text_atomic

# The model's confidence in a keypoint as COCO's visibility: sure of it; there, but perhaps hidden; not to be seen.
VISIBLE_CONFIDENCE = 0.5
HIDDEN_CONFIDENCE = 0.2


def write_prelabels(folder: Path, examples: list[HardExample], truth: CocoKeypoints, images: Path) -> None:
    """Writes what a person needs to correct hard examples, in the form of CVAT and of Label Studio.

    - `images/`: the pictures, byte for byte, under bare names.
    - `annotations.json`: COCO keypoints, the predictions as annotations with their `score`; a `reason` an image.
    - `ground_truth.json`: what is annotated now, for comparison; only where the data is annotated.
    - `reasons.json`: every reason of every image, by kind.
    - `cvat_labels.json`: the skeleton as CVAT's label constructor takes it.
    - `label_studio.json`, `label_studio.xml`: tasks with predictions, and the labelling interface for them.

    Args:
        folder: An existing empty folder.
        examples: What to write.
        truth: The annotations of the data set.
        images: Folder that its file names count from.

    Raises:
        PosefoundryError: A picture is missing.
    """
    (folder / "images").mkdir()
    records = []
    for example in examples:
        name = flat_name(example.image["file_name"])
        source = images / example.image["file_name"]
        if not source.is_file():
            raise PosefoundryError(f"{source}: expected the image that the annotations name, found no file.")
        shutil.copyfile(source, folder / "images" / name)
        reason = " ".join(reason.sentence for reason in example.reasons)
        records.append(example.image | {"file_name": name, "reason": reason})
    annotations = _annotations(examples, truth)
    prelabels = CocoKeypoints(
        images=records,
        annotations=annotations,
        categories=truth.categories,
        info={"description": "Predictions of a model as pre-labels; not yet corrected by anybody."},
        licenses=truth.licenses,
    )
    write_coco_keypoints(folder / "annotations.json", prelabels)
    if truth.annotations:
        current = only_images(truth, {example.image["id"] for example in examples})
        flat = [image | {"file_name": flat_name(image["file_name"])} for image in current.images]
        write_coco_keypoints(
            folder / "ground_truth.json",
            CocoKeypoints(flat, current.annotations, current.categories, current.info, current.licenses),
        )
    write_json_atomic(folder / "reasons.json", [_reasons(example) for example in examples])
    write_json_atomic(folder / "cvat_labels.json", skeleton_labels(truth))
    by_image = prelabels.annotations_of_image()
    category_names = {category["id"]: category["name"] for category in truth.categories}
    tasks = [
        task_of_image(
            record,
            by_image[record["id"]],
            category_names,
            truth.skeleton.keypoint_names,
            extra={"reason": record["reason"], "sha256": sha256_of_file(folder / "images" / record["file_name"])},
        )
        for record in records
    ]
    write_text_atomic(folder / "label_studio.json", json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
    write_text_atomic(
        folder / "label_studio.xml", labelling_config(list(category_names.values()), truth.skeleton.keypoint_names)
    )


def _reasons(example: HardExample) -> dict[str, Any]:
    return {
        "image_id": example.image["id"],
        "file_name": flat_name(example.image["file_name"]),
        "reasons": [
            {"kind": reason.kind, "hardness": round(reason.hardness, 4), "sentence": reason.sentence}
            for reason in example.reasons
        ],
    }


def _annotations(examples: list[HardExample], truth: CocoKeypoints) -> list[dict[str, Any]]:
    share = area_of_box(truth.annotations)
    annotations: list[dict[str, Any]] = []
    for example in examples:
        for detection in example.detections:
            if label := prelabel_of(detection, example.image["width"], example.image["height"], share):
                annotations.append({"id": len(annotations) + 1, **label})
    return annotations


def prelabel_of(detection: dict[str, Any], width_px: int, height_px: int, area_share: float) -> dict[str, Any] | None:
    """Turns a detection into a COCO annotation.

    The box is cut at the image's border. A keypoint's confidence becomes its visibility: 2 from .5, 1 from .2, else 0;
    a keypoint outside the image is 0, since no tool can show it.

    Args:
        detection: An entry of a COCO results file.
        width_px: Width of the image.
        height_px: Height of the image.
        area_share: Which part of its box a person's area is.

    Returns:
        The annotation but for its id, or None if nothing of the box is inside the image.
    """
    x, y, width, height = detection["bbox"]
    low = np.clip([x, y], 0, [width_px, height_px])
    high = np.clip([x + width, y + height], 0, [width_px, height_px])
    size = (high - low).round(2)
    if not (size > 0).all():
        return None
    keypoints: list[float] = []
    for px, py, confidence in np.array(detection["keypoints"], np.float64).reshape(-1, 3).tolist():
        inside = 0 <= px <= width_px and 0 <= py <= height_px
        v = 2 if confidence >= VISIBLE_CONFIDENCE else 1 if confidence >= HIDDEN_CONFIDENCE else 0
        keypoints += [round(px, 2), round(py, 2), v] if inside and v else [0, 0, 0]
    return {
        "image_id": detection["image_id"],
        "category_id": detection["category_id"],
        "bbox": [*low.round(2).tolist(), *size.tolist()],
        "area": round(float(size.prod()) * area_share, 2),
        "iscrowd": 0,
        "keypoints": keypoints,
        "num_keypoints": sum(v > 0 for v in keypoints[2::3]),
        "score": round(float(detection["score"]), 4),
        "attributes": {"score": round(float(detection["score"]), 4)},
    }
