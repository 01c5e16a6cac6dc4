"""The gate stage: what it decides, what it leaves behind, and how its process ends."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from posefoundry.config import Evaluate, Gate, Register
from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.evaluation.judge import judge_weights
from posefoundry.files import sha256_of_file, write_json_atomic
from posefoundry.models import ModelInfo, build_model
from posefoundry.models.weights import save_weights
from posefoundry.registry import store
from posefoundry.registry.registration import Evidence, register_version
from posefoundry.registry.runs import TrainingRun
from posefoundry.registry.versions import ProductionModel
from posefoundry.skeleton import COCO_PERSON, COCO_PERSON_CATEGORY, Skeleton
from posefoundry.stages import gate

JUDGED_BY = Evaluate(max_detections=20)
LENIENT = Gate(floors={"box_ap": 0.0}, max_regression={"oks_ap": 1.0})


def make_weights(path: Path, *, seed: int = 0, image_size_px: int = 96, skeleton: Skeleton = COCO_PERSON) -> Path:
    """A small model that sees persons everywhere."""
    torch.manual_seed(seed)
    kpt_shape = (skeleton.n_keypoints, 3)
    model = build_model("yolov8n-pose", kpt_shape=kpt_shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".cv3." in name and name.endswith(".2.bias"):
                parameter.fill_(0.0)
    info = ModelInfo(
        architecture="yolov8n-pose", class_names=("person",), category_ids=(1,), kpt_shape=kpt_shape,
        skeleton=skeleton, stride_px=32, image_size_px=image_size_px,
    )  # fmt: skip
    save_weights(path, model.state_dict(), info, {})
    return path


@pytest.fixture
def inputs(project: Path) -> dict[str, Path]:
    """A candidate, evaluated on one test image, and its training run."""
    raw = project / "raw"
    (raw / "images" / "test").mkdir(parents=True)
    rng = np.random.default_rng(0)
    cv2.imwrite(str(raw / "images" / "test" / "1.png"), rng.integers(0, 255, (64, 96, 3), np.uint8))
    keypoints = rng.uniform(5, 60, (17, 2)).round(1).tolist()
    person = {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 55, 55], "area": 1500.0, "iscrowd": 0,
        "num_keypoints": 17, "keypoints": [n for x, y in keypoints for n in (x, y, 2)],
    }  # fmt: skip
    image = {"id": 1, "file_name": "1.png", "width": 96, "height": 64}
    content = {"images": [image], "annotations": [person], "categories": [COCO_PERSON_CATEGORY]}
    write_json_atomic(raw / "annotations" / "test.json", content)
    weights = make_weights(project / "models" / "best.safetensors")
    judgement = judge_weights(weights, raw / "annotations" / "test.json", raw / "images" / "test", JUDGED_BY)
    write_json_atomic(project / "reports" / "evaluate" / "metrics.json", judgement.metrics)
    write_json_atomic(project / "reports" / "evaluate" / "passport.json", judgement.passport)
    with TrainingRun.start("posefoundry", "train", {}) as run:
        run.write_run_file(project / "models" / "mlflow_run.json")
    return {
        "raw": raw,
        "evaluation": project / "reports" / "evaluate",
        "run": project / "models" / "mlflow_run.json",
        "report": project / "reports" / "gate",
    }


@pytest.fixture
def in_production(monkeypatch):
    """Puts weights into production as version 3, without a registry."""

    def put(weights: Path) -> None:
        monkeypatch.setattr(gate, "aliases_of", lambda client, name: {"production": "3"})
        monkeypatch.setattr(gate, "production_weights", lambda name, into: ProductionModel("3", weights))

    return put


def run_gate(inputs, settings=LENIENT, judged_by=JUDGED_BY):
    gate.run(settings, judged_by, Register(), **inputs)
    return read_decision(inputs)


def read_decision(inputs):
    return json.loads((inputs["report"] / "decision.json").read_text())


def rejection(inputs, settings=LENIENT, judged_by=JUDGED_BY):
    with pytest.raises(RejectedError) as rejected:
        gate.run(settings, judged_by, Register(), **inputs)
    decision = read_decision(inputs)
    assert decision["passed"] is False
    return decision, str(rejected.value)


def test_a_first_candidate_above_its_floors_passes(inputs):
    decision = run_gate(inputs)
    assert decision["passed"] is True
    assert decision["verdict"] == "Passed: all 2 rules hold."
    assert decision["production_version"] is None
    assert decision["passports"]["candidate"] == json.loads((inputs["evaluation"] / "passport.json").read_text())
    assert decision["candidate"] == json.loads((inputs["evaluation"] / "metrics.json").read_text())


def test_a_rejected_candidate_is_told_why_and_so_is_its_run(inputs):
    decision, message = rejection(inputs, Gate(floors={"oks_ap": 0.99, "box_ap": 0.0}, max_regression={}))
    assert message.startswith("These rules fail:\n  oks_ap reaches its floor: Pose accuracy (OKS AP) is 0.")
    assert "box_ap" not in message
    assert [rule["passed"] for rule in decision["rules"]] == [False, True]
    run_id = json.loads(inputs["run"].read_text())["run_id"]
    run = store.client().get_run(run_id)
    assert run.data.tags["gate.passed"] == "false"
    assert run.data.tags["gate.verdict"] == decision["verdict"]
    assert run.data.metrics["gate_passed"] == 0
    assert [artifact.path for artifact in store.client().list_artifacts(run_id, "gate")] == [
        "gate/decision.json",
        "gate/index.html",
    ]


def test_the_candidate_that_is_in_production_is_not_judged_twice(inputs, in_production, project, monkeypatch):
    in_production(project / "models" / "best.safetensors")
    monkeypatch.setattr(gate, "judge_weights", lambda *a, **k: pytest.fail("judged the same weights again"))
    decision = run_gate(inputs, Gate(floors={}, max_regression={"box_ap": 0.0}))
    assert decision["production_version"] == "3"
    assert decision["production"] == decision["candidate"]


def test_another_model_in_production_is_judged_on_the_same_images(inputs, in_production, project):
    weights = make_weights(project / "old" / "best.safetensors", seed=1, image_size_px=64)
    in_production(weights)
    decision = run_gate(inputs)
    images, annotations = inputs["raw"] / "images" / "test", inputs["raw"] / "annotations" / "test.json"
    expected = judge_weights(weights, annotations, images, JUDGED_BY)
    assert decision["passports"]["production"] == expected.passport
    assert decision["production"] == expected.metrics
    passports = decision["passports"]
    assert [passports[who]["input_size_px"] for who in ("candidate", "production")] == [96, 64]
    comparable = decision["rules"][1]
    assert comparable["sentence"] == "Version 3 in production was judged on the same images in the same way."


def test_a_candidate_that_fell_behind_production_is_rejected(inputs, in_production, project, monkeypatch):
    in_production(make_weights(project / "old" / "best.safetensors", seed=1))
    metrics = json.loads((inputs["evaluation"] / "metrics.json").read_text()) | {"oks_ap": 0.3}
    write_json_atomic(inputs["evaluation"] / "metrics.json", metrics)
    judge = gate.judge_weights

    def better(*arguments, **named):
        judgement = judge(*arguments, **named)
        judgement.evaluation.metrics["oks_ap"] = 0.5
        return judgement

    monkeypatch.setattr(gate, "judge_weights", better)
    decision, _ = rejection(inputs, Gate(floors={}, max_regression={"oks_ap": 0.02}))
    assert decision["verdict"] == (
        "Rejected: Pose accuracy (OKS AP) is 0.300, 0.200 below the 0.500 of version 3 in production, "
        "but at most 0.020 below is allowed."
    )


def test_production_with_other_keypoints_rejects(inputs, in_production, project):
    in_production(make_weights(project / "old" / "best.safetensors", skeleton=Skeleton.from_names(["a", "b"])))
    decision, message = rejection(inputs)
    assert "Version 3 in production could not be compared: The model's keypoints are 2 (a, b)" in message
    assert decision["production_version"] == "3"


def test_production_that_cannot_be_loaded_rejects(inputs, in_production, project):
    weights = make_weights(project / "old" / "best.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])
    in_production(weights)
    _, message = rejection(inputs)
    assert "Version 3 in production could not be compared" in message


@pytest.mark.parametrize("field", ["confidence", "images_sha256"])
def test_numbers_that_were_measured_otherwise_reject_by_the_field(inputs, in_production, project, field):
    in_production(make_weights(project / "old" / "best.safetensors", seed=1))
    judged_by = JUDGED_BY
    if field == "confidence":
        judged_by = Evaluate(max_detections=20, confidence=0.5)
    else:
        cv2.imwrite(str(inputs["raw"] / "images" / "test" / "1.png"), np.zeros((64, 96, 3), np.uint8))
    _, message = rejection(inputs, judged_by=judged_by)
    assert f"Version 3 in production could not be compared: {field} was" in message


def test_production_comes_out_of_the_registry(inputs, trained):
    evidence = Evidence(
        weights=trained / "best.safetensors", onnx=trained / "model.onnx", decision=trained / "decision.json",
        metrics={}, latency_p50_ms=None, example_image=trained / "street.png",
    )  # fmt: skip
    run_id = json.loads(inputs["run"].read_text())["run_id"]
    version = register_version("posefoundry", "posefoundry", run_id, evidence)
    store.client().set_registered_model_alias("posefoundry", "production", version.version)
    decision = run_gate(inputs)
    assert decision["production_version"] == version.version
    assert decision["passports"]["production"]["weights_sha256"] == sha256_of_file(trained / "best.safetensors")


def test_a_store_out_of_reach_is_an_error_and_no_verdict(inputs, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    with pytest.raises(PosefoundryError) as error:
        run_gate(inputs)
    assert not isinstance(error.value, RejectedError)
    assert not inputs["report"].exists()


def test_without_a_limit_on_regression_production_is_left_alone(inputs, monkeypatch):
    monkeypatch.setattr(gate, "aliases_of", lambda *a: pytest.fail("asked for production"))
    assert run_gate(inputs, Gate(floors={"box_ap": 0.0}, max_regression={}))["passed"] is True


@pytest.mark.parametrize(("floor", "status"), [(0.0, 0), (0.99, 3)])
def test_the_process_ends_with_0_or_3(inputs, project, floor, status):
    (project / "params.yaml").write_text(f"gate: {{floors: {{box_ap: {floor}}}, max_regression: {{}}}}\n")
    command = [sys.executable, "-m", "posefoundry.stages.gate"]
    for name in ("raw", "evaluation", "run", "report"):
        command += [f"--{name}", str(inputs[name].relative_to(project))]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == status, ended.stderr
    assert read_decision(inputs)["passed"] is (status == 0)
    assert "box_ap reaches its floor" in ended.stdout
    assert ("fail" in ended.stdout) is (status == 3)
    if status == 3:
        assert ended.stderr.startswith(
            "gate: rejected. These rules fail:\n  box_ap reaches its floor: Person detection"
        )
        assert "Traceback" not in ended.stderr


def test_metrics_that_are_no_metrics_end_with_2(inputs, project):
    (inputs["evaluation"] / "metrics.json").write_text("[1, 2]")
    (project / "params.yaml").write_text("{}")
    command = [sys.executable, "-m", "posefoundry.stages.gate"]
    for name in ("raw", "evaluation", "run", "report"):
        command += [f"--{name}", str(inputs[name])]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "metrics.json: expected what the evaluate stage writes" in ended.stderr
    assert not inputs["report"].exists()
