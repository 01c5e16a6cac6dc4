"""The flows against a real Prefect server, on a toy pipeline."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from posefoundry.errors import PosefoundryError
from posefoundry.orchestration import verdict
from posefoundry.registry.versions import ModelVersion

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

FLOWS = Path(__file__).resolve().parents[2] / "flows"


@pytest.fixture(scope="session")
def retrain(prefect_server):
    """The flow, loaded as a worker loads it."""
    from prefect.flows import load_flow_from_entrypoint

    return load_flow_from_entrypoint(f"{FLOWS / 'retrain.py'}:retrain")


# Decides about the version that stands in the file `production`, which DVC does not know of.
GATE_STAGE = """
import json
Path('reports/gate').mkdir(parents=True, exist_ok=True)
decision = {'production_version': Path('production').read_text()}
Path('reports/gate/decision.json').write_text(json.dumps(decision))"""


def task_states(state) -> dict[str, tuple[str, int]]:
    """Name of the last state and number of runs of each task of a flow run."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    flow_run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=flow_run)
    return {run.name: (run.state_name, run.run_count) for run in runs}


def artifact(key: str) -> str:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return max(found, key=lambda one: one.created).data


def test_stages_run_then_show_as_cached(retrain, three_stages, caplog):
    first = retrain(project=str(three_stages.root), return_state=True)
    assert first.type == "COMPLETED"
    assert {name: state for name, (state, _) in task_states(first).items()} == dict.fromkeys(
        ("first", "second", "third"), "Completed"
    )
    spoken = [message for message in caplog.messages if message.endswith(" speaks")]
    assert spoken == ["first speaks", "second speaks", "third speaks"]

    again = retrain(project=str(three_stages.root), return_state=True)
    assert (again.type, again.name) == ("COMPLETED", "Cached")
    assert {state for state, _ in task_states(again).values()} == {"Cached"}
    assert "| second | Cached |" in artifact("retrain-summary")


def test_gates_no_ends_rejected_and_stops_what_follows(retrain, toy):
    decision = {
        "passed": False,
        "verdict": "Rejected: 1 of 1 rules does not hold.",
        "sentence": "The candidate must not follow version 3: it is worse.",
        "power": {"images": 9, "sentence": "With 9 images little can be seen."},
        "errors": {"candidate": {}, "production": {}, "sentence": "AP lost to swaps rose from 0.010 to 0.052."},
        "rules": [{"name": "floor", "passed": False, "sentence": "oks_ap is 0.31, below the floor of 0.40"}],
        "differences": [
            {"slice": "all", "candidate": 0.31, "production": 0.32, "difference": -0.01, "interval": [-0.03, 0.01]},
            {
                "slice": "keypoint=nose",
                "candidate": 0.2,
                "production": 0.3,
                "difference": -0.1,
                "interval": None,
                "proven": "worse",
            },
            {"slice": "site=a|b", "candidate": 0.2, "production": 0.3, "difference": -0.1, "interval": None},
        ],
    }
    toy.stage(
        "evaluate",
        """
Path('reports/evaluate').mkdir(parents=True)
Path('reports/evaluate/metrics.json').write_text('{"oks_ap": 0.3125, "box_ap": null}')""",
    )
    toy.stage(
        "gate",
        f"""
Path('reports/gate').mkdir()
Path('reports/gate/decision.json').write_text({json.dumps(json.dumps(decision))})
print('gate: rejected. oks_ap is 0.31, below the floor of 0.40', file=sys.stderr)
sys.exit(3)""",
        "evaluate",
        retries=2,
    )
    toy.stage("register", "", "gate")

    state = retrain(project=str(toy.root), return_state=True)
    assert (state.type, state.name) == ("FAILED", "Rejected")
    assert state.message == "gate: oks_ap is 0.31, below the floor of 0.40"
    states = task_states(state)
    assert states["evaluate"][0] == "Completed"
    assert states["gate"] == ("Rejected", 1)  # a verdict is not retried
    assert states["register"][0] == "NotReady"
    assert not (toy.root / "register.out").exists()

    summary = artifact("retrain-summary")
    assert "| gate | Rejected |" in summary
    assert "| register | not run |" in summary
    assert "| oks_ap | 0.3125 |" in summary
    assert "## Gate: rejected" in summary and "must not follow version 3: it is worse." in summary
    assert summary.count("AP lost to swaps rose from 0.010 to 0.052.") == 1
    assert summary.count("With 9 images little can be seen.") == 1
    assert "| **no** | oks_ap is 0.31, below the floor of 0.40 |" in summary
    assert "Of 3 slices 0 are proven better than production and 1 worse." in summary
    assert "| all | 0.310 | 0.320 | -0.010 | -0.030 to +0.010 | may be chance |" in summary
    assert "| keypoint=nose | 0.200 | 0.300 | -0.100 | n/a | worse |" in summary and "site=" not in summary
    assert "`reports/gate/index.html`" in summary


def test_a_verdict_about_another_model_than_the_one_in_production_is_given_anew(retrain, toy, monkeypatch, caplog):
    toy.stage("gate", GATE_STAGE)
    (toy.root / "params.yaml").write_text("gate: {rules: [{rule: no_regression, margin: 0.01}]}\n")

    def state_with(version: str | None) -> str:
        def in_production(model_name: str) -> ModelVersion:
            if version is None:
                raise PosefoundryError("MLflow: expected a tracking store, got: Connection refused.")
            return ModelVersion(model_name, version, (), {}, None, datetime.now(UTC))

        monkeypatch.setattr(verdict, "in_production", in_production)
        (toy.root / "production").write_text(version or "")
        return task_states(retrain(project=str(toy.root), return_state=True))["gate"][0]

    assert state_with("3") == "Completed"
    assert state_with("4") == "Completed"
    assert json.loads((toy.root / "reports/gate/decision.json").read_text())["production_version"] == "4"
    assert "decided anew: it compared with version 3, and in production is version 4" in artifact("retrain-summary")
    assert state_with(None) == "Cached"
    assert "cannot be told. MLflow: expected a tracking store, got: Connection refused." in caplog.text


def test_failure_is_retried_as_dvc_yaml_says(retrain, toy):
    toy.stage(
        "first",
        """
tries = len(Path('tries').read_text()) + 1 if Path('tries').exists() else 1
Path('tries').write_text('x' * tries)
print('try', tries)
if tries < 3: sys.exit('the disk sulks')""",
        retries=2,
        retry_delay_s=0.1,
    )
    state = retrain(project=str(toy.root), return_state=True)
    assert state.type == "COMPLETED"
    assert task_states(state)["first"] == ("Completed", 3)


def test_failure_carries_the_stages_last_lines(retrain, toy, caplog):
    toy.stage("first", "sys.exit('first: expected a camera, got none')", retries=1)
    toy.stage("second", "", "first")
    state = retrain(project=str(toy.root), return_state=True)
    assert (state.type, state.name) == ("FAILED", "Failed")
    assert state.message.endswith("first: expected a camera, got none")
    assert task_states(state)["first"] == ("Failed", 2)
    assert task_states(state)["second"][0] == "NotReady"
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("state", ["Crashed", "TimedOut", "NotReady"])
def test_a_stage_without_result_is_no_success(retrain, state):
    module = retrain.fn.__globals__
    record = module["StageRecord"]
    final = module["_final_state"]([record("ingest", "Completed", "", 1.0), record("train", state, "why", 1.0)])
    assert final.is_failed()
    assert "train" in final.message


def test_wrong_parameters_are_one_sentence_and_nothing_runs(retrain, three_stages):
    (three_stages.root / "params.yaml").write_text("train: {epoch: 3}\n")
    state = retrain(project=str(three_stages.root), return_state=True)
    assert (state.type, state.name) == ("FAILED", "Misconfigured")
    assert "unknown setting 'train.epoch'; did you mean 'epochs'" in state.message
    assert "Traceback" not in state.message
    assert task_states(state) == {}


def test_promotion_is_refused_in_one_sentence(prefect_server, project):
    from prefect.flows import load_flow_from_entrypoint

    promote = load_flow_from_entrypoint(f"{FLOWS / 'promote.py'}:promote")
    (project / "params.yaml").write_text("register: {model_name: nobody}\n")
    state = promote("candidate", why="a try", who="Ada", project=str(project), return_state=True)
    assert (state.type, state.name) == ("FAILED", "Refused")
    assert "nobody" in state.message
