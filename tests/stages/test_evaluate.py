"""The evaluate stage on a small model and a few images: files, MLflow, and nothing half-written."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from posefoundry.config import Evaluate
from posefoundry.errors import PosefoundryError
from posefoundry.files import write_json_atomic
from posefoundry.registry import store
from posefoundry.registry.runs import TrainingRun
from posefoundry.skeleton import COCO_PERSON_CATEGORY
from posefoundry.stages import evaluate

FEW = Evaluate(max_detections=20, overlay_images=2)


@pytest.fixture
def inputs(project: Path, make_weights: Callable[..., Path]) -> dict[str, Path]:
    """Three test images, weights that see persons everywhere, and a training run."""
    raw, rng = project / "raw", np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.png", "width": 96, "height": 64} for i in (1, 2, 3)]
    (raw / "images" / "test").mkdir(parents=True)
    for image in images:
        cv2.imwrite(str(raw / "images" / "test" / image["file_name"]), rng.integers(0, 255, (64, 96, 3), np.uint8))
    keypoints = rng.uniform(5, 60, (17, 2)).round(1)
    person = {
        "id": 1, "image_id": 2, "category_id": 1, "bbox": [5, 5, 55, 55], "area": 1500.0, "iscrowd": 0,
        "num_keypoints": 17, "keypoints": [n for x, y in keypoints.tolist() for n in (x, y, 2)],
    }  # fmt: skip
    content = {"images": images, "annotations": [person], "categories": [COCO_PERSON_CATEGORY]}
    write_json_atomic(raw / "annotations" / "test.json", content)
    (raw / "tags.csv").write_text("file_name,site\n1.png,yard\n2.png,gate\n3.png,\n")
    make_weights(project / "models" / "best.safetensors")
    with TrainingRun.start("posefoundry", "train", {}) as run:
        run.write_run_file(project / "models" / "mlflow_run.json")
    return {
        "raw": raw,
        "weights": project / "models" / "best.safetensors",
        "run": project / "models" / "mlflow_run.json",
        "checkpoints": project / "models" / "checkpoints",
        "report": project / "reports" / "evaluate",
    }


def test_the_report_is_written_and_the_training_run_told(inputs):
    for name in ("ended/finished", "ended/step-000000008.pt", "cut_short/step-000000003.pt"):
        path = inputs["checkpoints"] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    evaluate.run(FEW, **inputs)
    assert [path.name for path in inputs["checkpoints"].iterdir()] == ["cut_short"]
    report = inputs["report"]
    assert {path.name for path in report.iterdir()} == {
        "index.html", "metrics.json", "passport.json", "warnings.json", "detections.json", "pr_curve.csv",
        "oks_hist.csv", "slices.json", "images.json", "errors.json", "calibration.json", "classes.json",
        "plots", "overlays",
    }  # fmt: skip
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["images"] == 3
    assert metrics["detections"] == len(json.loads((report / "detections.json").read_text())) > 0
    assert metrics.keys() >= {"pck_0.05", "pck_0.1", "pck_0.2", "pckh_0.5", "mean_error_px", "normalised_error"}
    slices = {row["slice"]: row for row in json.loads((report / "slices.json").read_text())}
    assert (slices["site=gate"]["persons"], slices["site=yard"]["persons"]) == (1, 0)
    assert slices["all"]["pck_0.2"] == metrics["pck_0.2"]
    images = json.loads((report / "images.json").read_text())
    assert [row["tags"] for row in images] == [{"site": "yard"}, {"site": "gate"}, {}]
    [*_, background] = json.loads((report / "classes.json").read_text())["confusion"]
    assert background[0] == sum(row["false_positives"] for row in images)
    assert json.loads((report / "passport.json").read_text())["input_size_px"] == 96
    assert json.loads((report / "warnings.json").read_text()) == []
    run_id = json.loads(inputs["run"].read_text())["run_id"]
    client = store.client()
    run = client.get_run(run_id)
    assert run.data.metrics["test_oks_ap"] == pytest.approx(metrics["oks_ap"])
    assert "test_oks_ap_l" not in run.data.metrics, "no large person is annotated"
    logged = {artifact.path for artifact in client.list_artifacts(run_id, "evaluate")}
    assert {
        "evaluate/index.html",
        "evaluate/metrics.json",
        "evaluate/passport.json",
        "evaluate/plots",
        "evaluate/overlays",
    } <= logged


def test_the_same_weights_give_the_same_report(inputs):
    evaluate.run(FEW, **inputs)
    first = {path: path.read_bytes() for path in inputs["report"].rglob("*.*")}
    evaluate.run(FEW, **inputs)
    assert {path: path.read_bytes() for path in inputs["report"].rglob("*.*")} == first


def test_a_missing_image_leaves_the_earlier_report_as_it_was(inputs):
    evaluate.run(FEW, **inputs)
    before = (inputs["report"] / "metrics.json").read_bytes()
    (inputs["raw"] / "images" / "test" / "2.png").unlink()
    with pytest.raises(PosefoundryError, match=r"2\.png"):
        evaluate.run(FEW, **inputs)
    assert (inputs["report"] / "metrics.json").read_bytes() == before
    assert [path.name for path in inputs["report"].parent.iterdir()] == ["evaluate"]


def test_a_report_that_breaks_off_is_not_taken_for_whole(inputs, monkeypatch):
    def break_off(folder, judgement, *, overlay_images):
        write_json_atomic(folder / "metrics.json", judgement.metrics)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "write_report", break_off)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(FEW, **inputs)
    assert list(inputs["report"].parent.iterdir()) == []
