import json
import shutil

import pytest

from posefoundry.config import Register
from posefoundry.errors import PosefoundryError
from posefoundry.files import sha256_of_file, write_json_atomic
from posefoundry.registry import store
from posefoundry.registry.runs import TrainingRun
from posefoundry.registry.versions import list_versions, resolve
from posefoundry.stages import register


@pytest.fixture
def paths(project, trained):
    """The register stage's inputs where dvc.yaml has them."""
    places = {
        "models/train": ["best.safetensors", "best.json"],
        "models/export": ["model.onnx"],
        "reports/evaluate": ["metrics.json"],
        "reports/gate": ["decision.json"],
        "reports/release": [],
        "data/raw/images/test": ["street.png"],
    }
    for folder, names in places.items():
        (project / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(trained / name, project / folder / name)
    (project / "data/raw/annotations").mkdir()
    (project / "data/raw/annotations/test.json").write_text(
        json.dumps({
            "images": [{"id": 1, "file_name": "street.png", "width": 128, "height": 96}],
            "annotations": [],
            "categories": [{"id": 1, "name": "person", "keypoints": ["a"], "skeleton": []}],
        })
    )  # fmt: skip
    released = {
        "passed": True,
        "verdict": "Passed: all 4 rules hold.",
        "passports": {
            name: {"weights_sha256": sha256_of_file(trained / file)}
            for name, file in {"reference": "best.safetensors", "model.onnx": "model.onnx"}.items()
        },
    }
    decided = json.loads((trained / "decision.json").read_text())
    passport = {"weights_sha256": sha256_of_file(trained / "best.safetensors")}
    write_json_atomic(project / "reports/gate/decision.json", decided | {"passports": {"candidate": passport}})
    write_json_atomic(project / "reports/release/decision.json", released)
    figures = {"batch_1": {"end_to_end_ms": {"mean": 9.0, "p50": 8.25}}}
    (project / "reports/benchmark").mkdir()
    (project / "reports/benchmark/report.json").write_text(json.dumps({"runtimes": {"onnxruntime": figures}}))
    with TrainingRun.start("posefoundry", "a run", {}) as run:
        run.write_run_file(project / "models/train/mlflow_run.json")
    return {
        "weights": project / "models/train/best.safetensors",
        "artifacts": project / "models/export",
        "evaluation": project / "reports/evaluate",
        "decision": project / "reports/gate",
        "release": project / "reports/release",
        "benchmark": project / "reports/benchmark/report.json",
        "raw": project / "data/raw",
        "run": project / "models/train/mlflow_run.json",
        "report": project / "reports/register/version.json",
    }


def test_a_candidate_becomes_a_version(paths, capsys):
    register.run(Register(), **paths)
    run_id = json.loads(paths["run"].read_text())["run_id"]
    assert json.loads(paths["report"].read_text()) == {
        "model_name": "posefoundry",
        "version": "1",
        "run_id": run_id,
        "uri": "models:/posefoundry/1",
    }
    version = resolve("posefoundry", "candidate")
    assert version.tags["latency_p50_ms"] == "8.25"
    assert version.tags["oks_ap"] == "0.6100"
    assert version.tags["release.verdict"] == "Passed: all 4 rules hold."
    assert "stage.register" in store.client().get_run(run_id).data.tags
    assert "posefoundry promote candidate" in capsys.readouterr().out


def test_a_rejected_candidate_is_not_registered(paths):
    (paths["decision"] / "decision.json").write_text('{"passed": false, "verdict": "Rejected: it is worse."}')
    with pytest.raises(
        PosefoundryError, match=r"expected a candidate that passed the gate, got: Rejected: it is worse\."
    ):
        register.run(Register(), **paths)
    assert list_versions("posefoundry") == []
    assert not paths["report"].exists()


def test_what_the_release_gate_rejected_is_not_registered(paths):
    (paths["release"] / "decision.json").write_text('{"passed": false, "verdict": "Rejected: it is too slow."}')
    with pytest.raises(
        PosefoundryError, match=r"expected artifacts that passed the release gate, got: Rejected: it is too slow\."
    ):
        register.run(Register(), **paths)
    assert list_versions("posefoundry") == []


def test_a_file_that_the_release_gate_has_not_seen_is_not_registered(paths):
    with (paths["artifacts"] / "model.onnx").open("ab") as file:
        file.write(b"!")
    with pytest.raises(PosefoundryError, match=r"model\.onnx: expected the file that .*release/decision\.json"):
        register.run(Register(), **paths)
    assert list_versions("posefoundry") == []


def test_weights_that_a_gate_has_not_seen_are_not_registered(paths):
    with paths["weights"].open("ab") as file:
        file.write(b"!")
    with pytest.raises(PosefoundryError, match=r"best\.safetensors: expected the file that .*gate/decision\.json"):
        register.run(Register(), **paths)
    decided = json.loads((paths["decision"] / "decision.json").read_text())
    decided["passports"]["candidate"]["weights_sha256"] = sha256_of_file(paths["weights"])
    write_json_atomic(paths["decision"] / "decision.json", decided)
    with pytest.raises(PosefoundryError, match=r"best\.safetensors: expected the file that .*release/decision\.json"):
        register.run(Register(), **paths)
    assert list_versions("posefoundry") == []


@pytest.mark.parametrize("content", ['{"verdict": "?"}', '{"passed": "true"}', "[]", "{"])
@pytest.mark.parametrize("gate", ["decision", "release"])
def test_a_decision_that_is_none_lets_nothing_pass(paths, gate, content):
    (paths[gate] / "decision.json").write_text(content)
    with pytest.raises(PosefoundryError, match=r"decision\.json"):
        register.run(Register(), **paths)
    assert list_versions("posefoundry") == []


def test_latency_that_was_not_measured_is_left_out(paths):
    paths["benchmark"].write_text('{"runtimes": {"onnxruntime": {"batch_8": {}}}}')
    register.run(Register(model_name="other"), **paths)
    assert "latency_p50_ms" not in resolve("other", "1").tags


def test_without_a_test_image_there_is_no_example(paths):
    annotations = paths["raw"] / "annotations/test.json"
    annotations.write_text(json.dumps({**json.loads(annotations.read_text()), "images": []}))
    with pytest.raises(PosefoundryError, match="expected a test image"):
        register.run(Register(), **paths)
