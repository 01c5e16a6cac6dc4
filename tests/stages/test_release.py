"""The release gate: what may ship, why not, and what it leaves behind."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from posefoundry.config import ArtifactFloor, Evaluate, LatencyBudget, Parity, Release, SizeBudget
from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.evaluation.gate import Shipped, decide_release
from posefoundry.evaluation.judge import judge_weights
from posefoundry.export.onnx import export_onnx
from posefoundry.files import sha256_of_file, write_json_atomic
from posefoundry.models import load_model
from posefoundry.registry import store
from posefoundry.registry.runs import TrainingRun
from posefoundry.skeleton import COCO_PERSON_CATEGORY
from posefoundry.stages import release

JUDGED_BY = Evaluate(max_detections=20)
PARITY = Parity(rule="parity", at_most=0.002)
LATENCY = LatencyBudget(rule="latency", at_most_ms=20)
SIZE = SizeBudget(rule="size", at_most_mb=10)
ONNX = Shipped("model.onnx", 9_000_000, {"oks_ap": 0.5}, None, {1: {"p50": 12.5, "p95": 30.0}})


@pytest.mark.parametrize(
    ("rule", "artifact", "passed", "sentence"),
    [
        (PARITY, {"metrics": {"oks_ap": 0.501}}, True,
         "Pose accuracy (OKS AP) of model.onnx is 0.5010, +0.0010 from the PyTorch "
         "model's 0.5000, and at most 0.0020 either way is allowed."),
        (PARITY, {"metrics": {"oks_ap": 0.497}}, False, "Pose accuracy (OKS AP) of model.onnx is 0.4970, -0.0030 from "
         "the PyTorch model's 0.5000, but at most 0.0020 either way is allowed."),
        (PARITY, {"metrics": {"oks_ap": 0.503}}, False, "Pose accuracy (OKS AP) of model.onnx is 0.5030, +0.0030 from "
         "the PyTorch model's 0.5000, but at most 0.0020 either way is allowed."),
        (PARITY, {"metrics": {"oks_ap": None}}, False,
         "Pose accuracy (OKS AP) of model.onnx has no value on these test images, so it proves nothing."),
        (ArtifactFloor(rule="floor", at_least=0.4), {}, True,
         "Pose accuracy (OKS AP) of model.onnx is 0.500, and at least 0.400 is required."),
        (ArtifactFloor(rule="floor", at_least=0.6), {}, False,
         "Pose accuracy (OKS AP) of model.onnx is 0.500, but at least 0.600 is required."),
        (LATENCY, {}, True,
         "model.onnx takes 12.5 ms (p50 of a batch of 1, from pixels to persons), and at most 20 ms are allowed."),
        (LatencyBudget(rule="latency", statistic="p95", at_most_ms=20), {}, False,
         "model.onnx takes 30.0 ms (p95 of a batch of 1, from pixels to persons), but at most 20 ms are allowed."),
        (LatencyBudget(rule="latency", batch_size=4, at_most_ms=20), {}, False, "The p50 of a batch of 4 of model.onnx "
         "was not measured (measured batch sizes: 1), so it proves nothing."),
        (SIZE, {}, True, "model.onnx has 9.0 MB, and at most 10 MB are allowed."),
        (SIZE, {"n_bytes": 11_000_000}, False, "model.onnx has 11.0 MB, but at most 10 MB are allowed."),
        (SizeBudget(rule="size", artifact="model.engine", at_most_mb=1), {}, True,
         "model.engine was not built here, so it does not ship."),
    ],
)  # fmt: skip
def test_a_rule(rule, artifact, passed, sentence):
    shipped = Shipped(**{**vars(ONNX), **artifact})
    decision = decide_release(Release(rules=(rule,)), [shipped], {"oks_ap": 0.5})
    assert [outcome.passed for outcome in decision.rules] == [True, passed]
    assert decision.rules[-1].sentence == sentence
    assert decision.passed is passed


def test_a_rule_without_an_artifact_is_for_each_and_nothing_ships_unjudged():
    engine = Shipped("model.engine", 5_000_000, {}, "no GPU is here.")
    decision = decide_release(Release(rules=(PARITY, SIZE)), [ONNX, engine], {"oks_ap": 0.5})
    assert not decision.passed
    outcomes = [(outcome.artifact, outcome.kind, outcome.passed) for outcome in decision.rules]
    assert outcomes == [
        ("model.onnx", "parity", True), ("model.engine", "parity", False), ("model.onnx", "parity", True),
        ("model.onnx", "budget", True), ("model.engine", "budget", True),
    ]  # fmt: skip
    assert decision.sentence == (
        "The exported files model.onnx and model.engine must not ship: model.engine could not be judged, and nothing "
        "ships unjudged: no GPU is here."
    )


def test_nothing_exported_is_no_release():
    decision = decide_release(Release(rules=(PARITY,)), [], {"oks_ap": 0.5})
    assert not decision.passed and decision.verdict.startswith("Rejected")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, make_weights: Callable[..., Path]) -> Path:
    """A small model that sees persons everywhere: best.safetensors, and model.onnx made of it."""
    folder = tmp_path_factory.mktemp("exported")
    make_weights(folder / "best.safetensors")
    (folder / "export").mkdir()
    model, info = load_model(folder / "best.safetensors")
    digest = sha256_of_file(folder / "best.safetensors")
    export_onnx(model, info, folder / "export" / "model.onnx", opset=18, weights_sha256=digest)
    return folder


@pytest.fixture
def inputs(project: Path, exported: Path) -> dict[str, Path]:
    """What the stages before leave behind: some images, the PyTorch model's evaluation on them, a latency."""
    raw = project / "raw"
    (raw / "images" / "test").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, persons = [], []
    for i in (1, 2, 3):
        cv2.imwrite(str(raw / "images" / "test" / f"{i}.png"), rng.integers(0, 255, (64, 96, 3), np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "width": 96, "height": 64})
        points = [n for x, y in rng.uniform(5, 60, (17, 2)).round(1).tolist() for n in (x, y, 2)]
        persons.append({"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 55, 55], "area": 1500.0, "iscrowd": 0,
                        "num_keypoints": 17, "keypoints": points})  # fmt: skip
    content = {"images": images, "annotations": persons, "categories": [COCO_PERSON_CATEGORY]}
    write_json_atomic(raw / "annotations" / "test.json", content)
    judgement = judge_weights(
        exported / "best.safetensors", raw / "annotations" / "test.json", raw / "images" / "test", JUDGED_BY
    )
    write_json_atomic(project / "evaluate" / "metrics.json", judgement.metrics)
    write_json_atomic(project / "evaluate" / "passport.json", judgement.passport)
    latency = {"runtimes": {"onnxruntime": {"device": "CPU", "batch_1": {"end_to_end_ms": {"p50": 12.5}}}}}
    write_json_atomic(project / "benchmark.json", latency)
    with TrainingRun.start("posefoundry", "train", {}) as run:
        run.write_run_file(project / "mlflow_run.json")
    return {
        "raw": raw,
        "artifacts": exported / "export",
        "evaluation": project / "evaluate",
        "benchmark": project / "benchmark.json",
        "run": project / "mlflow_run.json",
        "report": project / "release",
    }


def read_decision(inputs):
    return json.loads((inputs["report"] / "decision.json").read_text())


def test_an_artifact_is_judged_by_its_own_figures(inputs, exported):
    judged_by = JUDGED_BY.model_copy(update={"crossed_slices": ("site=yard&size=small",)})  # tags are no matter here
    release.run(Release(rules=(PARITY, LATENCY, SizeBudget(rule="size", at_most_mb=50))), judged_by, **inputs)
    decision = read_decision(inputs)
    assert decision["passed"] is True
    assert decision["sentence"] == "The exported file model.onnx may ship."
    passport = decision["passports"]["model.onnx"]
    assert passport["weights_sha256"] == sha256_of_file(exported / "export" / "model.onnx")
    assert passport["runtime"] == "onnxruntime"
    assert decision["artifacts"]["model.onnx"]["detections"] > 0
    page = (inputs["report"] / "index.html").read_text()
    assert "The exported file model.onnx may ship." in page and "model.onnx is small enough" in page
    run = store.client().get_run(json.loads(inputs["run"].read_text())["run_id"])
    logged = {entry.path for entry in store.client().list_artifacts(run.info.run_id, "release")}
    assert logged == {"release/decision.json", "release/index.html"}
    assert run.data.tags["release.passed"] == "true"
    assert run.data.metrics["release_passed"] == 1
    assert run.data.metrics["onnxruntime_test_box_ap"] == pytest.approx(decision["artifacts"]["model.onnx"]["box_ap"])


def test_an_artifact_of_other_weights_is_found_out_by_its_distance(inputs):
    metrics = json.loads((inputs["evaluation"] / "metrics.json").read_text())
    write_json_atomic(inputs["evaluation"] / "metrics.json", metrics | {"box_ap": metrics["box_ap"] + 0.1})
    parity = Parity(rule="parity", metric="box_ap", at_most=0.05)
    with pytest.raises(RejectedError, match=r"model\.onnx box_ap is that of PyTorch: Person detection"):
        release.run(Release(rules=(parity,)), JUDGED_BY, **inputs)
    assert read_decision(inputs)["passed"] is False
    run = store.client().get_run(json.loads(inputs["run"].read_text())["run_id"])
    assert run.data.tags["release.passed"] == "false"


def test_figures_that_were_measured_otherwise_are_no_comparison(inputs):
    with pytest.raises(RejectedError, match=r"model\.onnx could not be judged.* confidence was 0\.001 .* is 0\.5 now"):
        release.run(Release(rules=(PARITY,)), Evaluate(max_detections=20, confidence=0.5), **inputs)


def test_an_artifact_that_cannot_be_loaded_does_not_ship(inputs, project):
    (project / "broken").mkdir()
    (project / "broken" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(RejectedError, match=r"model\.onnx could not be judged, and nothing ships unjudged"):
        release.run(Release(rules=(PARITY,)), JUDGED_BY, **inputs | {"artifacts": project / "broken"})


def test_a_report_that_is_none_is_an_error_and_no_verdict(inputs):
    inputs["benchmark"].write_text("[]")
    with pytest.raises(PosefoundryError, match=r"benchmark\.json: expected the output of the stage before") as error:
        release.run(Release(rules=(PARITY,)), JUDGED_BY, **inputs)
    assert not isinstance(error.value, RejectedError)


def test_the_process_ends_with_3_where_the_budget_is_exceeded(inputs, project):
    (project / "params.yaml").write_text(
        "evaluate: {max_detections: 20}\nrelease: {rules: [{rule: latency, at_most_ms: 12}]}\n"
    )
    command = [sys.executable, "-m", "posefoundry.stages.release"]
    for name, path in inputs.items():
        command += [f"--{name}", str(path)]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.startswith("release: rejected. These rules fail:\n  model.onnx is fast enough")
    assert "12.5 ms (p50 of a batch of 1" in ended.stderr
