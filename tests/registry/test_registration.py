import json
import shutil
from dataclasses import replace

import pytest

from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.passport import fingerprint_of_test
from posefoundry.files import sha256_of_file
from posefoundry.registry import registration, store
from posefoundry.registry.promotion import promote
from posefoundry.registry.registration import register_version
from posefoundry.registry.runs import TrainingRun
from posefoundry.registry.versions import fetch_artifact, list_versions, production_weights, resolve


@pytest.fixture
def register(project, evidence):
    with TrainingRun.start("people", "a run", {}) as run:
        pass

    def act(changed=evidence):
        return register_version("posefoundry", "people", run.run_id, changed)

    act.run_id = run.run_id
    return act


def with_verdict(evidence, folder, **decision):
    path = folder / "decision.json"
    path.write_text(json.dumps({"passed": True, "verdict": "Passed.", "production_version": None, **decision}))
    return replace(evidence, decision=path)


def test_a_version_says_what_it_is(register, evidence, project):
    version = register()
    assert (version.version, version.aliases, version.run_id) == ("1", ("candidate",), register.run_id)
    expected = {
        "training_run": register.run_id,
        "architecture": "yolov8n-pose",
        "gate.passed": "true",
        "gate.verdict": "Passed: all 3 rules hold.",
        "gate.compared_with": "",
        "oks_ap": "0.6100",
        "latency_p50_ms": "12.35",
        "sha256.onnx": sha256_of_file(evidence.onnx),
        "sha256.weights": sha256_of_file(evidence.weights),
    }
    assert expected.items() <= version.tags.items()
    assert version.tags["skeleton.keypoints"].startswith("17: nose, left_eye")
    assert "oks_ap_m" not in version.tags  # it has no value
    # The run shows the model it made, with its metrics.
    run = store.client().get_run(register.run_id)
    [output] = run.outputs.model_outputs
    metrics = store.client().get_logged_model(output.model_id).metrics
    assert {metric.key: metric.value for metric in metrics} == {"test_oks_ap": 0.61, "test_box_ap": 0.8}


def test_a_version_carries_what_its_figures_were_measured_on(evidence, tmp_path):
    passport = {"annotations_sha256": "a", "confidence": 0.1, "weights_sha256": "w"}
    decided = with_verdict(evidence, tmp_path, passports={"candidate": passport, "production": None})
    assert registration._version_tags("run", decided)["sha256.test"] == fingerprint_of_test(passport)
    assert "sha256.test" not in registration._version_tags("run", with_verdict(evidence, tmp_path))


def test_registering_the_same_again_is_the_same_version(register):
    assert register() == register()
    assert len(list_versions("posefoundry")) == 1


def test_other_evidence_is_another_version(register, evidence, tmp_path):
    register()
    other = register(with_verdict(evidence, tmp_path, production_version="1"))
    assert (other.version, other.aliases, other.tags["gate.compared_with"]) == ("2", ("candidate",), "1")
    assert resolve("posefoundry", "1").aliases == ()
    assert register().aliases == ("candidate",)  # the first again: no third version, and it is the candidate now
    assert [entry.version for entry in list_versions("posefoundry")] == ["2", "1"]


@pytest.mark.parametrize("method", ["log_model_artifacts", "create_model_version", "set_registered_model_alias"])
def test_a_registration_killed_on_its_way_makes_one_version(method, register, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(type(store.client()), method, die)
        with pytest.raises(Killed):
            register()
    version = register()
    assert (version.version, version.aliases) == ("1", ("candidate",))
    assert len(list_versions("posefoundry")) == 1
    assert len(store.client().search_logged_models([store.experiment_id("people")])) == 1


def test_a_model_that_cannot_predict_is_not_registered(register, evidence, tmp_path):
    broken = tmp_path / "model.onnx"
    broken.write_bytes(evidence.onnx.read_bytes()[:1000])
    with pytest.raises(PosefoundryError, match="expected a model that predicts through MLflow, got"):
        register(replace(evidence, onnx=broken))
    assert list_versions("posefoundry") == []


def test_a_missing_artifact_is_named(register, evidence):
    with pytest.raises(PosefoundryError, match=r"nowhere\.onnx: expected this file to register"):
        register(replace(evidence, onnx=evidence.onnx.with_name("nowhere.onnx")))


def test_nothing_in_production_has_no_weights(project, tmp_path):
    assert production_weights("posefoundry", tmp_path / "weights") is None


def test_production_weights_are_those_registered(register, evidence, tmp_path):
    promote("posefoundry", register().version, why="first")
    model = production_weights("posefoundry", tmp_path / "weights")
    assert model.version == "1"
    assert model.weights.read_bytes() == evidence.weights.read_bytes()
    sidecar = model.weights.with_suffix(".json")
    assert sidecar.read_bytes() == evidence.weights.with_suffix(".json").read_bytes()
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["best.json", "best.safetensors"]


def test_altered_artifacts_are_refused(register, project, tmp_path):
    promote("posefoundry", register().version, why="first")
    for name in ("best.safetensors", "decision.json"):
        [stored] = project.rglob(f"artifacts/{name}")
        stored.write_bytes(b'{"passed": true}')
    with pytest.raises(
        PosefoundryError, match=r"best\.safetensors with SHA-256 .* was altered after it was registered"
    ):
        production_weights("posefoundry", tmp_path / "weights")
    store.client().delete_registered_model_alias("posefoundry", "production")
    with pytest.raises(PosefoundryError, match=r"decision\.json with SHA-256 .* was altered"):
        promote("posefoundry", "1", why="again")


def test_a_cleared_artifact_store_is_named(register, project, tmp_path):
    version = register()
    shutil.rmtree(project / "mlartifacts")
    with pytest.raises(PosefoundryError, match=r"models:/posefoundry/1: expected the artifact model\.onnx"):
        fetch_artifact(version, "model.onnx", tmp_path)


def test_requirements_are_versions_an_index_knows():
    assert "+" not in registration._public_version("torch")
