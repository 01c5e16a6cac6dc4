"""Which model the candidate is held against, and what follows where it cannot be."""

import json

import cv2
import numpy as np
import pytest
from gate_rules import at_least, no_loss

from posefoundry.config import Evaluate
from posefoundry.evaluation.judge import judge_weights
from posefoundry.files import sha256_of_file, write_json_atomic
from posefoundry.registry import store
from posefoundry.registry.registration import Evidence, register_version
from posefoundry.skeleton import Skeleton
from posefoundry.stages import gate


def test_the_candidate_that_is_in_production_is_not_judged_twice(in_production, project, monkeypatch, run_gate):
    in_production(project / "models" / "best.safetensors")
    monkeypatch.setattr(gate, "judge_weights", lambda *a, **k: pytest.fail("judged the same weights again"))
    decision = run_gate(no_loss(0.0))
    assert decision["production_version"] == "3"
    assert decision["production"] == decision["candidate"]


def test_another_model_in_production_is_judged_on_the_same_images(
    inputs, in_production, project, make_weights, run_gate, judged_by
):
    weights = make_weights(project / "old" / "best.safetensors", seed=1, image_size_px=64)
    in_production(weights)
    decision = run_gate()
    images, annotations = inputs["raw"] / "images" / "test", inputs["raw"] / "annotations" / "test.json"
    expected = judge_weights(weights, annotations, images, judged_by)
    assert decision["passports"]["production"] == expected.passport
    assert decision["production"] == expected.metrics
    passports = decision["passports"]
    assert [passports[who]["input_size_px"] for who in ("candidate", "production")] == [96, 64]
    comparable = decision["rules"][1]
    assert comparable["sentence"] == "Version 3 in production was judged on the same images in the same way."


def test_production_comes_out_of_the_registry_and_rejects_where_it_is_gone_from_there(
    inputs, trained, project, run_gate, rejection
):
    evidence = Evidence(
        weights=trained / "best.safetensors", onnx=trained / "model.onnx", decision=trained / "decision.json",
        metrics={}, latency_p50_ms=None, example_image=trained / "street.png",
    )  # fmt: skip
    run_id = json.loads(inputs["run"].read_text())["run_id"]
    version = register_version("posefoundry", "posefoundry", run_id, evidence)
    store.client().set_registered_model_alias("posefoundry", "production", version.version)
    decision = run_gate()
    assert decision["production_version"] == version.version
    assert decision["passports"]["production"]["weights_sha256"] == sha256_of_file(trained / "best.safetensors")
    [stored] = project.glob("mlartifacts/**/best.safetensors")
    stored.unlink()
    decision, message = rejection()
    assert decision["production_version"] == version.version
    assert f"Version {version.version} in production could not be compared" in message
    assert "best.safetensors" in message and "Traceback" not in message


def test_production_with_other_keypoints_rejects(in_production, project, make_weights, rejection):
    in_production(make_weights(project / "old" / "best.safetensors", skeleton=Skeleton.from_names(["a", "b"])))
    decision, message = rejection()
    assert "Version 3 in production could not be compared: The model's keypoints are 2 (a, b)" in message
    assert decision["production_version"] == "3"


def test_production_that_cannot_be_loaded_rejects(in_production, project, make_weights, run_gate, rejection):
    weights = make_weights(project / "old" / "best.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])
    in_production(weights)
    _, message = rejection()
    assert "Version 3 in production could not be compared" in message
    decision = run_gate(at_least(0.0, "box_ap"), no_loss(0.0), incomparable_production="waive")
    assert decision["production_version"] == "3" and decision["differences"] == []


def test_a_changed_skeleton_can_be_waived_and_is_told(in_production, project, make_weights, run_gate):
    in_production(make_weights(project / "old" / "best.safetensors", skeleton=Skeleton.from_names(["a", "b"])))
    decision = run_gate(at_least(0.0, "box_ap"), no_loss(0.0), incomparable_production="waive")
    assert decision["production_version"] == "3" and decision["power"] is None
    assert "it could not be compared, which gate.incomparable_production waives" in decision["sentence"]
    assert "The model's keypoints are 2 (a, b)" in decision["rules"][1]["sentence"]


@pytest.mark.parametrize("field", ["confidence", "images_sha256"])
def test_numbers_that_were_measured_otherwise_reject_by_the_field(
    inputs, in_production, project, make_weights, rejection, judged_by, field
):
    in_production(make_weights(project / "old" / "best.safetensors", seed=1))
    if field == "confidence":
        judged_by = Evaluate(max_detections=20, confidence=0.5)
    else:
        cv2.imwrite(str(inputs["raw"] / "images" / "test" / "1.png"), np.zeros((64, 96, 3), np.uint8))
    _, message = rejection(judged_by=judged_by)
    assert f"Version 3 in production could not be compared: {field} was" in message


def test_test_images_without_anybody_prove_nothing(
    inputs, in_production, project, make_weights, rejection, annotated, judged_by
):
    content = annotated | {"annotations": []}
    write_json_atomic(inputs["raw"] / "annotations" / "test.json", content)
    weights, images = project / "models" / "best.safetensors", inputs["raw"] / "images" / "test"
    judgement = judge_weights(weights, inputs["raw"] / "annotations" / "test.json", images, judged_by)
    write_json_atomic(inputs["evaluation"] / "metrics.json", judgement.metrics)
    write_json_atomic(inputs["evaluation"] / "passport.json", judgement.passport)
    in_production(make_weights(project / "old" / "best.safetensors", seed=1))
    nothing, message = rejection(at_least(0.9, slice_name="corrected"))
    assert nothing["rules"] == [] and nothing["verdict"].startswith("Rejected: no rule finds anything to judge")
    assert message == nothing["sentence"] and "Add one on all persons" in message
    decision, _ = rejection(at_least(0.0), no_loss(0.5))
    assert [rule["passed"] for rule in decision["rules"]] == [False, True, False]
    assert "has no value on these test images, so it proves nothing" in decision["rules"][2]["sentence"]
    assert decision["power"] is None and decision["differences"] == []
    assert (inputs["report"] / "index.html").stat().st_size > 0
