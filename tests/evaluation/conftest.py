"""People without pictures: COCO content made by hand, so that each figure of a test can be followed on paper."""

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefoundry.evaluation.oks import BOX_METRICS, OKS_METRICS
from posefoundry.skeleton import COCO_PERSON_CATEGORY


def make_detection(
    person: dict[str, Any], score: float = 0.9, shift_xy: tuple[float, float] = (0, 0)
) -> dict[str, Any]:
    """A detection that is the person itself, moved."""
    dx, dy = shift_xy
    x, y, width, height = person["bbox"]
    points = np.array(person["keypoints"], float).reshape(-1, 3) + np.array([dx, dy, 0])
    return {
        "image_id": person["image_id"],
        "category_id": person["category_id"],
        "bbox": [x + dx, y + dy, width, height],
        "keypoints": points.ravel().tolist(),
        "score": score,
    }


def make_coco(annotations: list[dict[str, Any]], n_images: int = 2) -> dict[str, Any]:
    """COCO content with images 1 to n of 640 x 480."""
    images = [{"id": i, "file_name": f"{i:03}.png", "width": 640, "height": 480} for i in range(1, n_images + 1)]
    return {"images": images, "annotations": annotations, "categories": [COCO_PERSON_CATEGORY]}


def judge_by_pycocotools(
    content: dict[str, Any], detections: list[dict[str, Any]], sigmas: Any
) -> tuple[dict[str, float | None], Any]:
    """The reference implementation's figures, and its keypoint evaluation with all it holds.

    Annotations get numbers from 1, because pycocotools takes a person with id 0 for one that was never found.
    """
    content, detections = copy.deepcopy(content), copy.deepcopy(detections)
    for number, entry in enumerate(content["annotations"], 1):
        labelled = sum(v > 0 for v in entry["keypoints"][2::3])
        entry |= {"id": number, "num_keypoints": entry.get("num_keypoints", labelled)}
        entry.setdefault("iscrowd", 0)
    for number, entry in enumerate(detections, 1):
        entry |= {"id": number, "iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3]}
    figures: dict[str, float | None] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth, results = COCO(), COCO()
        truth.dataset, results.dataset = content, content | {"annotations": detections}
        truth.createIndex()
        results.createIndex()
        for kind, keys in (("bbox", BOX_METRICS), ("keypoints", OKS_METRICS)):
            evaluation = COCOeval(truth, results, kind)
            if kind == "keypoints":
                evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            stats = [None if value < 0 else float(value) for value in evaluation.stats]
            figures |= dict(zip(keys, stats, strict=False))
    return figures, evaluation


@pytest.fixture
def arbiter() -> Callable[..., tuple[dict[str, float | None], Any]]:
    return judge_by_pycocotools


@pytest.fixture
def detection() -> Callable[..., dict[str, Any]]:
    return make_detection


@pytest.fixture
def coco() -> Callable[..., dict[str, Any]]:
    return make_coco


@pytest.fixture
def crowd_scene(person: Callable[..., dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Twelve images with all that makes evaluation hard: sizes, crowds, unlabelled persons, misses, false positives."""
    rng = np.random.default_rng(5)
    annotations, detections = [], []
    for image_id in range(1, 13):
        for _ in range(rng.integers(0, 5)):
            height = float(rng.choice([40, 90, 200]) * rng.uniform(0.8, 1.2))
            entry = person(len(annotations), image_id, *rng.uniform(0, 300, 2).tolist(), height / 2, height)
            standing = np.array(entry["keypoints"]).reshape(-1, 3) - [0, 0, 1]
            visible = rng.random(17) < rng.choice([0.0, 0.7, 1.0], p=[0.15, 0.45, 0.4])
            points = np.array(entry["keypoints"]).reshape(-1, 3) * visible[:, None]
            entry |= {"keypoints": points.ravel().tolist(), "num_keypoints": int(visible.sum())}
            entry["iscrowd"] = int(rng.random() < 0.1)
            annotations.append(entry)
            for _ in range(rng.integers(0, 3)):
                found = make_detection(entry, round(float(rng.random()), 3), tuple(rng.normal(0, height / 30, 2)))
                noise = rng.normal(0, height / 25, (17, 3)) * [1, 1, 0]
                found["keypoints"] = (standing + noise).ravel().tolist()
                detections.append(found)
        for _ in range(rng.integers(0, 2)):
            nobody = person(0, image_id, *rng.uniform(0, 300, 2).tolist(), 40, 80)
            detections.append(make_detection(nobody, round(float(rng.random()), 3)))
    return make_coco(annotations, 12), detections
