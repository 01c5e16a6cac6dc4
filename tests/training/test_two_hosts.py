"""Two hosts, played by two network namespaces: one agent in each, and the losses of two processes on one host."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Learn = Callable[[int, dict[str, dict[str, Any]]], dict[str, dict[str, list]]]
HERE = Path(__file__).parent
ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = 29631


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces that reach each other and nothing else."""
    if shutil.which("ip") is None:
        pytest.skip("two hosts: needs the command ip")
    first, second = names = (f"posefoundry-{os.getpid()}-a", f"posefoundry-{os.getpid()}-b")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "pfa", "netns", first, "type", "veth", "peer", "name", "pfb", "netns", second)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"two hosts: this user may not make network namespaces: {error.stderr.strip()}")
        for name, device, address in zip(names, ("pfa", "pfb"), ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def environment() -> dict[str, str]:
    """The second address sorts last: the host that the rendezvous names has rank 0 all the same."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "POSEFOUNDRY_RDZV": f"{ADDRESSES[1]}:{PORT}"}


def launch(command: list[str], settings: dict, folder: Path, host: str | None = None) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    given = folder / "settings.json"
    given.write_text(json.dumps(settings))
    inside = ["ip", "netns", "exec", host] if host else []
    whole = [*inside, sys.executable, str(HERE / "launch.py"), str(given), sys.executable, *command]
    return subprocess.Popen(whole, env=environment(), stderr=subprocess.PIPE, text=True)


def end(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    try:
        told = [process.communicate(timeout=120)[1] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()  # and with it what it has started
        raise
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]


def wait_for(file: Path) -> None:
    until = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < until, f"{file} has not come"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_hosts_learn_what_two_processes_learn(
    hosts: tuple[str, str], people: Path, tmp_path: Path, learn: Learn, small_job: dict[str, Any]
) -> None:
    script, dataset, given = str(HERE / "train_steps.py"), str(people / "yolo/dataset.yaml"), tmp_path / "jobs.json"
    settings = small_job | {"processes": 1, "nodes": 2}
    given.write_text(json.dumps({"short": settings}))
    outs = [tmp_path / name for name in ("a.json", "b.json")]
    results = end(*(
        launch([script, dataset, str(given), str(own)], settings, tmp_path / host, host)
        for host, own in zip(hosts, outs, strict=True)
    ))  # fmt: skip
    assert [status for status, _ in results] == [0, 0], results
    steps = json.loads(outs[1].read_text())["short"]["steps"]
    assert len(steps) == 4
    assert steps == learn(2, {"short": small_job})["short"]["steps"]
    assert not outs[0].exists(), "only the host that the rendezvous names writes"


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "rank"), [("sleep", 1), ("freeze", 0), ("freeze", 1)])
def test_a_stall_on_one_host_ends_both(hosts: tuple[str, str], tmp_path: Path, fault: str, rank: int) -> None:
    settings = {"nodes": 2, "batch_size": 2, "max_restarts": 1}
    command = [str(HERE / "group_member.py"), str(tmp_path), fault, "3", str(rank)]
    results = end(*(launch(command, settings, tmp_path / host, host) for host in hosts))
    assert [status for status, _ in results] == [2, 2], results
    assert any(f"stalled: rank {rank} (" in told for _, told in results)
    assert not (tmp_path / f"1_{rank}").exists()
    if fault == "freeze" and rank == 0:  # nothing on its own host can know why it ends
        assert "rank 1 ended with exit status 2" in results[0][1]
        assert f"({ADDRESSES[0]}) has ended this training; its output tells why" in results[1][1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_host_is_named(
    hosts: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setenv("TEST_HEARTBEAT_S", "0.0005")  # so often that one is under way when the agent ends
    settings = {"nodes": 2, "batch_size": 2, "max_restarts": 1}
    command = [str(HERE / "group_member.py"), str(tmp_path), "lose-host", "60", str(rank)]
    results = end(*(launch(command, settings, tmp_path / host, host) for host in hosts))
    (lost, _), (status, told) = results[1 - rank], results[rank]
    assert (lost, status) == (-9, 2), results
    (sentence,) = (line for line in told.splitlines() if line.startswith("launch: "))
    assert re.search(rf"connection to .*{re.escape(ADDRESSES[1 - rank])}.* was lost after the training began", sentence)


@pytest.mark.slow
def test_a_host_that_comes_back_is_taken_in_again(
    hosts: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lost host has the lower address, so that torch keeps the store of all processes on it."""
    monkeypatch.setenv("TEST_JOIN_TIMEOUT_S", "90")
    settings = {"nodes": 2, "batch_size": 2, "max_restarts": 1}
    command = [str(HERE / "group_member.py"), str(tmp_path), "lose-host-once", "60", "1"]
    lost, left = (launch(command, settings, tmp_path / host, host) for host in hosts)
    assert lost.wait(timeout=60) == -9
    results = end(launch(command, settings, tmp_path / hosts[0], hosts[0]), left)
    assert [status for status, _ in results] == [0, 0], results
    assert {json.loads((tmp_path / f"1_{rank}").read_text())["sum"] for rank in (0, 1)} == {3}


@pytest.mark.slow
def test_a_link_that_goes_down_ends_both(hosts: tuple[str, str], tmp_path: Path) -> None:
    settings = {"nodes": 2, "batch_size": 2, "max_restarts": 1}
    command = [str(HERE / "group_member.py"), str(tmp_path), "cut-off", "3", "1"]
    both = [launch(command, settings, tmp_path / host, host) for host in hosts]
    wait_for(tmp_path / "0_1")
    ip("-n", hosts[0], "link", "set", "pfa", "down")
    (tmp_path / "cut").touch()
    results = end(*both)
    assert [status for status, _ in results] == [2, 2], results
    assert "Training stalled: " in results[0][1]
    assert f"the host of the rendezvous, {ADDRESSES[1]}:{PORT}, was lost after the training began" in results[0][1]
    assert "Training stalled: " in results[1][1]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["meeting", "joining"])
def test_a_link_that_goes_down_while_a_lost_process_is_replaced_ends_both(
    hosts: tuple[str, str], tmp_path: Path, moment: str
) -> None:
    """The agents are just meeting again, or the new processes are about to join each other."""
    settings = {"nodes": 2, "batch_size": 2, "max_restarts": 1}
    command = [str(HERE / "group_member.py"), str(tmp_path), "kill-cut-off", "10", "1"]
    both = [launch(command, settings, tmp_path / host, host) for host in hosts]
    wait_for(tmp_path / "0_1")
    if moment == "meeting":
        time.sleep(0.6)
    else:
        for rank in (0, 1):
            wait_for(tmp_path / f"joining-{rank}")
    ip("-n", hosts[0], "link", "set", "pfa", "down")
    (tmp_path / "cut").touch()
    results = end(*both)
    assert [status for status, _ in results] == [2, 2], results
    lost = f"the host of the rendezvous, {ADDRESSES[1]}:{PORT}, was lost after the training began"
    assert f"{lost}: it has not answered for 4 s" in results[0][1]
    # By which sentence the other one is named depends on how far the agents have come.
    assert ADDRESSES[0] in results[1][1]
    if moment == "joining":
        assert f"the processes' common store, on {ADDRESSES[0]}, has not answered for 10 s" in results[1][1]
    assert not any("Traceback" in told for _, told in results)


@pytest.mark.slow
def test_hosts_with_different_parameters_refuse(hosts: tuple[str, str], tmp_path: Path) -> None:
    command = [str(HERE / "group_member.py"), str(tmp_path), "none", "60"]
    results = end(*(
        launch(command, {"nodes": 2, "batch_size": size}, tmp_path / host, host)
        for host, size in zip(hosts, (2, 4), strict=True)
    ))  # fmt: skip
    assert [status for status, _ in results] == [2, 2], results
    assert any("different parameters" in told for _, told in results)


@pytest.mark.slow
def test_hosts_with_different_data_refuse(hosts: tuple[str, str], people: Path, tmp_path: Path) -> None:
    settings = {"nodes": 2, "batch_size": 6, "image_size_px": 64, "device": "cpu", "epochs": 1}
    stages = []
    for host in hosts:
        project = tmp_path / host
        shutil.copytree(people, project / "data")
        (project / "checks.json").write_text('{"passed": true}')
        (project / "params.yaml").write_text(json.dumps({"train": settings}))
        (project / "models").mkdir()
        (project / "models/kept").touch()
    labels = sorted((tmp_path / hosts[0] / "data/yolo/labels/train").iterdir())
    labels[0].write_text("")
    for host in hosts:
        command = ["ip", "netns", "exec", host, sys.executable, "-m", "posefoundry.stages.train"]
        command += ["--raw", "data/raw", "--yolo", "data/yolo", "--data-checks", "checks.json", "--report", "report"]
        command += ["--checkpoints", "checkpoints", "--models", "models"]
        stages.append(subprocess.Popen(
            command, cwd=tmp_path / host, env=environment(), stderr=subprocess.PIPE, text=True,
        ))  # fmt: skip
    results = end(*stages)
    assert [status for status, _ in results] == [2, 2], results
    for host, (_, told) in zip(hosts, results, strict=True):
        assert re.search(r"the host \S+ \(rank 1\) has different training data from \S+ \(rank 0\)\.", told), told
        assert (tmp_path / host / "models/kept").exists()


@pytest.mark.slow
def test_after_a_lost_process_both_hosts_go_on_from_the_checkpoint(
    hosts: tuple[str, str], people: Path, tmp_path: Path, small_job: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    settings = small_job | {"checkpoint_every_steps": 2, "max_restarts": 1}

    def command(folder: Path, doomed_rank: int) -> list[str]:
        files = people / "yolo/dataset.yaml", people / "raw/annotations/val.json", folder
        return [str(HERE / "train_with_checkpoints.py"), *map(str, files), str(doomed_rank)]

    folders = [tmp_path / host for host in hosts]
    results = end(*(
        launch(command(folder, 1), settings | {"processes": 1, "nodes": 2}, folder, host)
        for host, folder in zip(hosts, folders, strict=True)
    ))  # fmt: skip
    assert [status for status, _ in results] == [0, 0], results
    assert "lost rank 1 (killed by SIGKILL)" in results[0][1]
    assert "Going on after step 2 of 4" in capfd.readouterr().out
    undisturbed = tmp_path / "undisturbed"
    assert end(launch(command(undisturbed, -1), settings | {"processes": 2}, undisturbed))[0][0] == 0
    for name in ("best.safetensors", "last.safetensors"):
        assert (folders[1] / "weights" / name).read_bytes() == (undisturbed / "weights" / name).read_bytes()
    assert not (folders[0] / "weights").exists(), "the addresses' order would have made the other host the first"
