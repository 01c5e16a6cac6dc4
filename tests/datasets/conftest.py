"""Small data folders in the form that the ingest stage writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from posefoundry.datasets.manifest import write_manifest
from posefoundry.files import write_json_atomic

CATEGORY = {
    "id": 1,
    "name": "person",
    "keypoints": ["nose", "left_ear", "right_ear"],
    "skeleton": [[1, 2], [1, 3]],
}


def _annotation(annotation_id: int = 1, **changes: Any) -> dict[str, Any]:
    """A person in the first image, 100 x 80 px: box 10..50 x 20..70, nose visible, left ear hidden, no right ear."""
    return {
        "id": annotation_id,
        "image_id": 1,
        "category_id": 1,
        "bbox": [10.0, 20.0, 40.0, 50.0],
        "keypoints": [30, 30, 2, 35.5, 28, 1, 0, 0, 0],
        "num_keypoints": 2,
        "area": 900.0,
        "iscrowd": 0,
    } | changes


def _write_raw(
    folder: Path,
    train: list[dict[str, Any]] | None = None,
    *,
    categories: list[dict[str, Any]] | None = None,
    set_aside: list[dict[str, Any]] | None = None,
) -> Path:
    """Writes three splits, each with person.png (id 1, 100 x 80 px) and empty.png (id 2, 64 x 48 px).

    `train` are the annotations of train; val and test have one good person each.
    """
    of_split = {"train": [_annotation()] if train is None else train, "val": [_annotation()], "test": [_annotation()]}
    for number, (split, annotations) in enumerate(of_split.items()):
        images = [
            {"id": 1, "file_name": "person.png", "width": 100, "height": 80},
            {"id": 2, "file_name": "empty.png", "width": 64, "height": 48},
        ]
        (folder / "images" / split).mkdir(parents=True)
        for image in images:
            pixels = np.full((image["height"], image["width"], 3), 10 * number + image["id"], np.uint8)
            assert cv2.imwrite(str(folder / "images" / split / image["file_name"]), pixels)
        content = {"images": images, "annotations": annotations, "categories": categories or [CATEGORY]}
        write_json_atomic(folder / "annotations" / f"{split}.json", content)
    write_json_atomic(folder / "set_aside.json", set_aside or [])
    write_manifest(folder, {"kind": "test"})
    return folder


@pytest.fixture(scope="session")
def annotation() -> Callable[..., dict[str, Any]]:
    return _annotation


@pytest.fixture(scope="session")
def write_raw() -> Callable[..., Path]:
    return _write_raw
