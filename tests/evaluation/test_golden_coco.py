"""COCO's ten keypoint figures on real images, kept as golden numbers: ours and pycocotools' are these."""

import gzip
import json
from pathlib import Path

import pytest

from posefoundry.evaluation.oks import OKS_METRICS, OksEvaluator
from posefoundry.files import sha256_of_file
from posefoundry.skeleton import COCO_SIGMAS

GOLDEN = Path(__file__).parents[1] / "golden"
ANNOTATIONS = Path(__file__).parents[3] / "shared/coco-real/annotations/person_keypoints_val2017.json"

CHECKPOINT = Path(__file__).parents[3] / "shared/weights/yolov8n-pose.pt"
# The golden detections are those of a score of .01 or more, the 20 best of an image, rounded to .1 px: 1,416 of 8,231.
# What is left out is right now and then, which costs recall most, and it can only lower what is found.
AP_LOST_AT_MOST, AR_LOST_AT_MOST = 0.002, 0.01
ROUNDING = 0.00005  # the published figures have four digits

needs_annotations = pytest.mark.skipif(not ANNOTATIONS.is_file(), reason=f"{ANNOTATIONS} is not there")
needs_checkpoint = pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"{CHECKPOINT} is not there")


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((GOLDEN / "coco_real_metrics.json").read_text())


@pytest.fixture(scope="module")
def detections() -> list[dict]:
    """Rows as the file's `origin` says: image id, score in 1/10000, then in 1/10 px the box and the 17 keypoints."""
    rows = json.loads(gzip.decompress((GOLDEN / "coco_real_detections.json.gz").read_bytes()))["rows"]
    return [
        {
            "image_id": image_id,
            "category_id": 1,
            "score": score / 10_000,
            "bbox": [n / 10 for n in numbers[:4]],
            "keypoints": [n for x, y in zip(numbers[4::2], numbers[5::2], strict=True) for n in (x / 10, y / 10, 1)],
        }
        for image_id, score, *numbers in rows
    ]


def test_the_golden_figures_are_those_published_for_the_checkpoint_but_for_what_was_left_out(golden):
    """Published: the table of the README beside the checkpoint, by pycocotools on these 192 images."""
    assert set(golden["published"]) == set(OKS_METRICS)
    for key, published in golden["published"].items():
        most = AP_LOST_AT_MOST if key.startswith("oks_ap") else AR_LOST_AT_MOST
        assert -ROUNDING <= published - golden["metrics"][key] <= most, key


@needs_checkpoint
def test_the_checkpoint_that_was_published_is_the_one_there(golden):
    assert sha256_of_file(CHECKPOINT) == golden["checkpoint_sha256"]


@needs_annotations
def test_the_figures_on_real_images_are_the_golden_ones(golden, detections):
    assert sha256_of_file(ANNOTATIONS) == golden["annotations_sha256"]
    metrics = OksEvaluator(ANNOTATIONS, sigmas=COCO_SIGMAS).evaluate(detections)
    assert {key: metrics[key] for key in OKS_METRICS} == pytest.approx(golden["metrics"], abs=1e-9)


@needs_annotations
def test_the_arbiter_says_so_too(golden, detections, arbiter):
    figures, _ = arbiter(json.loads(ANNOTATIONS.read_text()), detections, COCO_SIGMAS)
    assert {key: figures[key] for key in OKS_METRICS} == pytest.approx(golden["metrics"], abs=1e-9)
