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

pytestmark = pytest.mark.skipif(not ANNOTATIONS.is_file(), reason=f"{ANNOTATIONS} is not there")


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


def test_the_figures_on_real_images_are_the_golden_ones(golden, detections):
    assert sha256_of_file(ANNOTATIONS) == golden["annotations_sha256"]
    metrics = OksEvaluator(ANNOTATIONS, sigmas=COCO_SIGMAS).evaluate(detections)
    assert {key: metrics[key] for key in OKS_METRICS} == pytest.approx(golden["metrics"], abs=1e-9)


def test_the_arbiter_says_so_too(golden, detections, arbiter):
    figures, _ = arbiter(json.loads(ANNOTATIONS.read_text()), detections, COCO_SIGMAS)
    assert {key: figures[key] for key in OKS_METRICS} == pytest.approx(golden["metrics"], abs=1e-9)
