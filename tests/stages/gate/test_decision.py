"""What the stage leaves behind, and how its process ends."""

import json
import subprocess
import sys

import pytest
from gate_rules import at_least

from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.registry import store
from posefoundry.stages import gate


def test_the_data_s_warnings_are_shown_as_a_count(run_gate, capsys):
    run_gate({"rule": "data_checks"})
    line = next(line for line in capsys.readouterr().out.splitlines() if "data checks" in line)
    assert " 0 warnings " in line


def test_a_first_candidate_above_its_floors_passes(inputs, run_gate):
    decision = run_gate()
    assert decision["passed"] is True
    assert decision["verdict"] == "Passed: all 2 rules hold."
    assert decision["production_version"] is None
    assert decision["errors"]["production"] is None and decision["errors"]["sentence"] is None
    assert decision["passports"]["candidate"] == json.loads((inputs["evaluation"] / "passport.json").read_text())
    assert decision["candidate"] == json.loads((inputs["evaluation"] / "metrics.json").read_text())


def test_a_rejected_candidate_is_told_why_and_so_is_its_run(inputs, rejection):
    decision, message = rejection(at_least(0.99), at_least(0.0, "box_ap"))
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


def test_without_a_limit_on_regression_production_is_left_alone(monkeypatch, run_gate):
    monkeypatch.setattr(gate, "aliases_of", lambda *a: pytest.fail("asked for production"))
    assert run_gate(at_least(0.0, "box_ap"))["passed"] is True


def test_a_store_out_of_reach_is_an_error_and_no_verdict(inputs, monkeypatch, run_gate):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    with pytest.raises(PosefoundryError) as error:
        run_gate()
    assert not isinstance(error.value, RejectedError)
    assert not inputs["report"].exists()


@pytest.mark.parametrize(("bound", "status"), [(0.0, 0), (0.99, 3)])
def test_the_process_ends_with_0_or_3(inputs, project, bound, status):
    (project / "params.yaml").write_text(f"gate: {{rules: [{{rule: floor, metric: box_ap, at_least: {bound}}}]}}\n")
    command = [sys.executable, "-m", "posefoundry.stages.gate"]
    for name in ("raw", "evaluation", "data_checks", "run", "report"):
        command += [f"--{name.replace('_', '-')}", str(inputs[name].relative_to(project))]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == status, ended.stderr
    assert json.loads((inputs["report"] / "decision.json").read_text())["passed"] is (status == 0)
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
    for name in ("raw", "evaluation", "data_checks", "run", "report"):
        command += [f"--{name.replace('_', '-')}", str(inputs[name])]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "metrics.json: expected the output of the stage before" in ended.stderr
    assert not inputs["report"].exists()
