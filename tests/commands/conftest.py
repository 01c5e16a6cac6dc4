"""`posefoundry evaluate` on files that tests make up."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posefoundry.skeleton import COCO_KEYPOINT_NAMES


@pytest.fixture
def evaluate(monkeypatch, command_line, tmp_path):
    """Runs `posefoundry evaluate` in a folder of its own; returns exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    return partial(command_line, "evaluate")


def make_random_files(seed, *, names=COCO_KEYPOINT_NAMES, n_classes=1, boxes=True, n_images=30):
    """Persons of all sizes, crowds, unlabelled ones, false positives, ties of scores, more than 20 in an image."""
    rng = np.random.default_rng(seed)
    k, annotations, detections = len(names), [], []
    image_ids = [int(i) for i in rng.permutation(n_images) * 7 + 3]
    for image_id in image_ids:
        for _ in range(rng.integers(0, 4)):
            size = float(rng.choice([25, 60, 150, 300]))
            x, y = rng.uniform(0, 300, 2)
            xy = rng.uniform(0, size, (k, 2)) + np.array([x, y])
            v = rng.choice([0, 1, 2], k) * (rng.random() > 0.1)
            points = np.concatenate((xy.round(1), v[:, None]), axis=1) * (v > 0)[:, None]
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": int(rng.integers(1, n_classes + 1)),
                "bbox": [x, y, size, size], "area": size**2 * rng.uniform(0.3, 0.9), "iscrowd": int(rng.random() < 0.1),
                "keypoints": points.ravel().tolist(), "num_keypoints": int((v > 0).sum()),
            })  # fmt: skip
            for _ in range(rng.choice([0, 1, 2, 15])):
                guess = xy + rng.normal(0, size * rng.choice([0.01, 0.04]), (k, 2))
                detections.append((image_id, guess, annotations[-1]["category_id"]))
        detections += [(image_id, rng.uniform(0, 400, (k, 2)), 1) for _ in range(rng.integers(0, 3))]
    results = []
    for number in rng.permutation(len(detections)):
        image_id, xy, category_id = detections[number]
        (x, y), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
        results.append({
            "image_id": image_id, "category_id": category_id, "score": round(float(rng.random()), 2),
            "keypoints": np.concatenate((xy, np.ones((k, 1))), axis=1).ravel().tolist(),
        } | ({"bbox": [x, y, right - x, bottom - y]} if boxes else {}))  # fmt: skip
    categories = [{"id": c, "name": f"class {c}", "keypoints": list(names)} for c in range(1, n_classes + 1)]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in image_ids]
    return {"images": images, "annotations": annotations, "categories": categories}, results


@pytest.fixture
def random_files() -> Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]:
    return make_random_files


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any], list[dict[str, Any]]], None]:
    """Writes annotations and results as gt.json and dt.json."""

    def act(content: dict[str, Any], results: list[dict[str, Any]]) -> None:
        (tmp_path / "gt.json").write_text(json.dumps(content))
        (tmp_path / "dt.json").write_text(json.dumps(results))

    return act
