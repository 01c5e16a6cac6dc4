"""Processes of one host: started, replaced when lost, ended with a name when one stalls."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from posefoundry.errors import PosefoundryError
from posefoundry.training.launch import threads_a_process

HERE = Path(__file__).parent


def start(folder: Path, fault: str, **settings: object) -> subprocess.Popen[str]:
    (folder / "settings.json").write_text(json.dumps({"processes": 2, "batch_size": 2, **settings}))
    command = [sys.executable, str(HERE / "launch.py"), str(folder / "settings.json")]
    command += [
        sys.executable,
        str(HERE / "group_member.py"),
        str(folder),
        fault,
        "3" if fault in ("sleep", "freeze") else "60",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def run(folder: Path, fault: str, **settings: object) -> tuple[int, str]:
    process = start(folder, fault, **settings)
    _, told = process.communicate(timeout=300)
    return process.returncode, told


def facts(folder: Path, attempt: int, rank: int) -> dict:
    return json.loads((folder / f"{attempt}_{rank}").read_text())


@pytest.mark.slow
def test_a_killed_process_is_replaced_and_all_begin_again(tmp_path: Path) -> None:
    status, told = run(tmp_path, "kill", max_restarts=1)
    assert status == 0, told
    assert "lost rank 1 (killed by SIGKILL); all go on" in told  # and not rank 0 too, which ended because of it
    assert "Traceback" not in told
    assert not (tmp_path / "0_0").exists()
    first, second = facts(tmp_path, 1, 0), facts(tmp_path, 1, 1)
    assert (first["sum"], second["sum"]) == (3, 3)
    assert (first["gathered"], second["gathered"]) == ([0, 10, 1, 11], [])
    assert first["threads"] == second["threads"] == threads_a_process(2)


@pytest.mark.slow
def test_a_signal_after_the_main_process_has_ended_well_changes_nothing(tmp_path: Path) -> None:
    job = start(tmp_path, "slow-end")
    until = time.monotonic() + 120
    while not (tmp_path / "0_0").exists() or len(psutil.Process(job.pid).children()) == 2:
        assert time.monotonic() < until and job.poll() is None
        time.sleep(0.2)
    job.terminate()
    _, told = job.communicate(timeout=60)
    assert (job.returncode, told) == (0, "")


@pytest.mark.slow
def test_restarts_are_counted(tmp_path: Path) -> None:
    status, told = run(tmp_path, "kill-always", max_restarts=1)
    assert status == PosefoundryError.exit_status
    assert "rank 1 was killed by SIGKILL; gave up after 1 restart." in told
    assert (tmp_path / "1_1").exists()
    assert not (tmp_path / "2_1").exists()


@pytest.mark.slow
def test_a_fault_with_its_message_is_not_tried_again(tmp_path: Path) -> None:
    status, told = run(tmp_path, "explain", max_restarts=3)
    assert status == PosefoundryError.exit_status
    assert told.count("the weights are not there.") == 1
    assert not (tmp_path / "1_1").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("sleep", "step 2: preparing; .* the others wait for it"),
        ("freeze", "its whole process or host stands still or cannot be reached"),
    ],
)
def test_a_stalled_process_is_named_and_the_job_ends(tmp_path: Path, fault: str, why: str) -> None:
    started = time.monotonic()
    status, told = run(tmp_path, fault)
    assert status == PosefoundryError.exit_status
    (verdict,) = (line for line in told.splitlines() if "Training stalled" in line)
    assert "stalled: rank 1 (" in verdict
    assert re.search(why, verdict)
    assert time.monotonic() - started < 60  # and not the half hour of a collective
    assert not (tmp_path / "1_1").exists()
