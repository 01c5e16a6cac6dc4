"""How a function becomes a command: its sections, its paths, its exit status."""

import subprocess
import sys

import pytest

STAGE = """
from pathlib import Path

from posefoundry.config import Evaluate, Gate, Register
from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.stages.runner import run_as_command

def run(settings: Gate, evaluate: Evaluate, register: Register, *, raw: Path, data_checks: Path) -> None:
    \"\"\"Tells what it was given.\"\"\"
    print(settings.rules[0].at_least, evaluate.confidence, register.model_name, raw, data_checks)
    if raw.name == "fault":
        raise PosefoundryError("Expected sense, got none.")
    if raw.name == "reject":
        raise RejectedError("Not good enough.")

run_as_command("gate", run)
"""


@pytest.fixture
def stage(tmp_path):
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "params.yaml").write_text(
        "gate: {rules: [{rule: floor, at_least: 0.75}]}\n"
        "evaluate: {confidence: 0.125}\nregister: {model_name: someone}\n"
    )

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "stage.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    return call


def test_a_stage_gets_its_section_those_it_names_and_its_paths(stage):
    ended = stage("--raw", "data/raw", "--data-checks", "report.json")
    assert ended.stdout == "0.75 0.125 someone data/raw report.json\n", ended.stderr
    assert ended.returncode == 0


@pytest.mark.parametrize(
    ("raw", "status", "message"),
    [("fault", 2, "gate: Expected sense, got none.\n"), ("reject", 3, "gate: rejected. Not good enough.\n")],
)
def test_faults_and_rejections_are_messages_with_a_status(stage, raw, status, message):
    ended = stage("--raw", raw, "--data-checks", "report.json")
    assert (ended.returncode, ended.stderr) == (status, message)


def test_parameters_may_lie_elsewhere_and_are_named_when_missing(stage):
    ended = stage("--raw", "x", "--data-checks", "y", "--params", "other.yaml")
    assert ended.returncode == 2
    assert ended.stderr.startswith("gate: other.yaml: expected the parameters")


def test_help_says_what_the_stage_does(stage):
    ended = stage("--help")
    assert "Tells what it was given." in ended.stdout
    assert "--data-checks" in ended.stdout
