import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.orchestration.dvc_graph import Outcome, StageFailedError, read_pipeline


def test_order_needs_and_policy_come_from_dvc(three_stages):
    first, second, third = read_pipeline(three_stages.root)
    assert [stage.name for stage in (first, second, third)] == ["first", "second", "third"]
    assert first.needs == ()
    assert second.needs == ("first",)
    assert third.needs == ("first", "second")
    assert second.command == "exec python second.py"
    assert (second.policy.retries, second.policy.retry_delay_s, second.policy.time_limit_s) == (2, 0.1, 30)
    assert (first.policy.retries, first.policy.time_limit_s) == (0, None)


def test_stages_that_do_not_need_each_other_keep_the_order_of_the_file(toy):
    for name in ("delta", "alpha", "charlie", "bravo"):
        toy.stage(name, "")
    assert [stage.name for stage in read_pipeline(toy.root)] == ["delta", "alpha", "charlie", "bravo"]


def test_added_data_is_no_stage(toy):
    from dvc.repo import Repo

    (toy.root / "photos").mkdir()
    (toy.root / "photos" / "one.txt").write_text("1")
    with Repo(str(toy.root)) as repo:
        repo.add(str(toy.root / "photos"))
    toy.stage("first", "")
    definition = toy.root / "dvc.yaml"
    definition.write_text(definition.read_text().replace("- first.py", "- first.py\n    - photos"))
    (stage,) = read_pipeline(toy.root)
    assert (stage.name, stage.needs) == ("first", ())


def test_misspelt_policy_is_named(toy):
    toy.stage("first", "", retrys=2)
    with pytest.raises(PosefoundryError, match=r"meta of first: unknown setting 'retrys'; did you mean 'retries'"):
        read_pipeline(toy.root)


def test_folder_without_dvc_is_an_error_of_one_message(tmp_path):
    with pytest.raises(PosefoundryError, match="expected a DVC project"):
        read_pipeline(tmp_path)


def test_broken_dvc_yaml_is_an_error_of_one_message(toy):
    (toy.root / "dvc.yaml").write_text("stages:\n  first: [not, a, stage]\n")
    with pytest.raises(PosefoundryError, match=r"dvc\.yaml"):
        read_pipeline(toy.root)


def test_ran_then_cached_then_restored(three_stages):
    assert three_stages.run("first")[0] is Outcome.RAN
    assert (three_stages.root / "first.out").read_text() == "first"
    assert three_stages.run("first")[0] is Outcome.CACHED
    # The code changes and changes back: the first run is still known to DVC.
    original = (three_stages.root / "first.py").read_text()
    (three_stages.root / "first.py").write_text(original + "Path('first.out').write_text('other')\n")
    assert three_stages.run("first")[0] is Outcome.RAN
    assert (three_stages.root / "first.out").read_text() == "other"
    (three_stages.root / "first.py").write_text(original)
    outcome, lines = three_stages.run("first")
    assert outcome is Outcome.RESTORED
    assert lines == ["Stage 'first' is cached - skipping run, checking out outputs"]
    assert (three_stages.root / "first.out").read_text() == "first"


def test_what_a_stage_says_is_not_taken_for_dvcs_word(toy):
    toy.stage("first", "print(\"Stage 'first' didn't change, skipping\")")
    outcome, lines = toy.run("first")
    assert outcome is Outcome.RAN
    assert "Stage 'first' didn't change, skipping" in lines


def test_lines_arrive_in_order_and_while_the_stage_runs(toy):
    toy.stage("first", "print('one')\nprint('two', file=sys.stderr)\ntime.sleep(1.5)\nprint('three')")
    seen: list[tuple[str, float]] = []
    from posefoundry.orchestration.dvc_graph import run_stage

    run_stage("first", project=toy.root, on_line=lambda line: seen.append((line, time.monotonic())))
    moments = {line: moment for line, moment in seen if line in ("one", "two", "three")}
    assert list(moments) == ["one", "two", "three"]
    assert moments["three"] - moments["two"] > 1.0


def test_python_in_the_pipeline_is_this_interpreter(toy, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    toy.stage("first", "print('prefix', sys.prefix)")
    assert f"prefix {sys.prefix}" in toy.run("first")[1]


def test_failure_has_exit_status_and_last_lines(toy):
    toy.stage("first", "for i in range(40): print('line', i)\nsys.exit('first: expected a camera, got none')")
    with pytest.raises(StageFailedError) as failure:
        toy.run("first")
    message = str(failure.value)
    assert message.startswith("first: ended with exit status 1.")
    assert message.endswith("line 39\nfirst: expected a camera, got none")
    assert "line 20" not in message


def test_failure_of_dvc_itself_has_its_reason(toy):
    toy.stage("first", "", "nobody")
    with pytest.raises(StageFailedError, match=r"nobody\.out"):
        toy.run("first")


def test_output_that_was_not_written_is_a_failure(toy):
    toy.stage("first", "sys.exit(0)")
    with pytest.raises(StageFailedError, match=r"first\.out"):
        toy.run("first")


def test_gates_no_is_a_verdict(toy):
    toy.stage(
        "gate", "print('a table')\nprint('gate: rejected. Too low:\\n  0.31, not 0.40', file=sys.stderr)\nsys.exit(3)"
    )
    with pytest.raises(RejectedError) as verdict:
        toy.run("gate")
    assert str(verdict.value) == "Too low:\n  0.31, not 0.40"
    assert not (toy.root / "dvc.lock").exists()


def test_time_limit_stops_the_stage_and_frees_the_pipeline(toy):
    toy.stage("first", "print('pid', os.getpid())\ntime.sleep(60)")
    began = time.monotonic()
    with pytest.raises(StageFailedError, match=r"stopped at its time limit of 6 s(.|\n)*pid (\d+)") as failure:
        toy.run("first", time_limit_s=6)
    assert time.monotonic() - began < 20
    assert not psutil.pid_exists(int(str(failure.value).rsplit("pid ", 1)[1].split()[0]))
    toy.stage("first", "")
    assert toy.run("first")[0] is Outcome.RAN  # no lock is left


DRIVER = """
import sys
from pathlib import Path
from posefoundry.orchestration.dvc_graph import run_stage
run_stage("first", project=Path(sys.argv[1]), on_line=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("signal_number", [2, 15, 9])
def test_no_stage_outlives_its_flow(toy, signal_number):
    """An interrupt, a polite and a hard kill of the flow's process all end DVC and the stage."""
    toy.stage(
        "first",
        "import posefoundry.stages\nprint('pid', os.getpid(), flush=True)\ntime.sleep(60)",
    )
    flow = subprocess.Popen([sys.executable, "-c", DRIVER, str(toy.root)], stdout=subprocess.PIPE, text=True)
    assert flow.stdout is not None
    stage_pid = next(int(line.split()[1]) for line in flow.stdout if line.startswith("pid "))
    dvc_pid = psutil.Process(stage_pid).ppid()
    os.kill(flow.pid, signal_number)
    flow.wait(20)
    flow.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(_alive(pid) for pid in (stage_pid, dvc_pid)):
        time.sleep(0.05)
    assert not _alive(stage_pid)
    assert not _alive(dvc_pid)
    toy.stage("first", "")
    assert toy.run("first")[0] is Outcome.RAN


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_second_run_waits_for_dvcs_lock(toy: object, tmp_path: Path):
    """While somebody else holds the project (a `dvc status`, a checkout), a stage waits instead of failing."""
    from dvc.repo import Repo

    toy.stage("first", "")
    with Repo(str(toy.root)) as repo, repo.lock:
        waiting = subprocess.Popen([sys.executable, "-c", DRIVER, str(toy.root)], stdout=subprocess.DEVNULL)
        time.sleep(5)
        assert waiting.poll() is None
    assert waiting.wait(30) == 0


def test_locks_of_killed_processes_are_forgotten(toy):
    """A dead process that nobody reaped, and a number that another program has now, own nothing."""
    import json

    from posefoundry.orchestration.dvc_command import forget_locks_of_the_dead

    zombie = subprocess.Popen(["true"])
    stranger = subprocess.Popen(["sleep", "60"])
    owner = subprocess.Popen(["bash", "-c", "exec -a dvc sleep 60"])
    try:
        while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        while "dvc" not in " ".join(psutil.Process(owner.pid).cmdline()[:1]):
            time.sleep(0.01)
        path = toy.root / ".dvc" / "tmp" / "rwlock"
        held = {
            name: {"pid": p.pid, "cmd": "dvc repro"} for name, p in (("/a", zombie), ("/b", stranger), ("/c", owner))
        }
        path.write_text(json.dumps({"write": held, "read": {name: [entry] for name, entry in held.items()}}))
        forget_locks_of_the_dead(toy.root)
        locks = json.loads(path.read_text())
        assert locks["write"] == {"/c": held["/c"]}
        assert {name: owners for name, owners in locks["read"].items() if owners} == {"/c": [held["/c"]]}
    finally:
        for process in (zombie, stranger, owner):
            process.kill()
            process.wait()


def test_parameters_of_continuous_integration_are_valid_and_complete():
    import yaml

    from posefoundry.params import load_params

    repository = Path(__file__).resolve().parents[2]
    load_params(repository / "infra" / "ci-params.yaml")
    small, full = (yaml.safe_load((repository / name).read_text()) for name in ("infra/ci-params.yaml", "params.yaml"))
    assert small.keys() == full.keys()


def test_pipeline_of_the_product_is_read():
    import yaml

    repository = Path(__file__).resolve().parents[2]
    stages = read_pipeline(repository)
    assert [stage.name for stage in stages] == list(yaml.safe_load((repository / "dvc.yaml").read_text())["stages"])
    assert all(stage.command.startswith(f"exec python -m posefoundry.stages.{stage.name} ") for stage in stages)
    assert all(earlier.name in later.needs for earlier, later in itertools.pairwise(stages))
