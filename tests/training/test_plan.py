"""A training outside of the pipeline: kept as a file, and carried out by one process or several."""

import csv
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError, StoppedError
from posefoundry.training import launch
from posefoundry.training.plan import PLAN, Plan


def plan_of(people: Path, folder: Path, settings: Train, **more: Any) -> Plan:
    return Plan(
        folder=folder,
        settings=settings,
        dataset_yaml=people / "yolo" / "dataset.yaml",
        val_annotations=people / "raw" / "annotations" / "val.json",
        verbose=False,
        **more,
    )


def test_it_is_kept_as_it_is(people: Path, settings: Train, tmp_path: Path) -> None:
    plan = plan_of(people, tmp_path, settings, checkpoints="checkpoints/1", gpus=(1, 3), facts={"data": "mine.yaml"})
    plan.write()
    assert Plan.read(tmp_path) == plan
    (tmp_path / PLAN).write_text("{}")
    with pytest.raises(PosefoundryError, match="expected the plan of a training: 'settings'"):
        Plan.read(tmp_path)


def test_several_hosts_are_the_pipeline_s(people: Path, settings: Train, tmp_path: Path) -> None:
    several = settings.model_copy(update={"nodes": 2})
    with pytest.raises(PosefoundryError, match=r"train\.nodes: expected 1, got 2"):
        plan_of(people, tmp_path, several).carry_out()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], str | None]]:
    """What would be started, each with the GPUs that it would see."""
    calls: list[tuple[list[str], str | None]] = []

    def run_processes(command: Sequence[str], settings: Train) -> None:
        calls.append((list(command), os.environ.get("CUDA_VISIBLE_DEVICES")))
        if len(calls) > 1:
            raise StoppedError("enough")

    monkeypatch.setattr(launch, "run_processes", run_processes)
    return calls


def test_a_process_for_each_gpu_that_is_named(
    people: Path,
    settings: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started: list[tuple[list[str], str | None]],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    plan_of(people, tmp_path, settings, gpus=(2,)).carry_out()
    assert started == [([sys.executable, "-m", "posefoundry.training.plan", str(tmp_path)], "2")]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ and not (tmp_path / PLAN).exists()

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,6,7")
    two = plan_of(people, tmp_path, settings.model_copy(update={"processes": 2}), gpus=(1, 3))
    with pytest.raises(StoppedError):
        two.carry_out()
    assert started[1][1] == "5,7" and os.environ["CUDA_VISIBLE_DEVICES"] == "4, 5,6,7"
    assert Plan.read(tmp_path) == two  # to be gone on with

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PosefoundryError, match="from 0 to 1, got 1, 3"):
        two.carry_out()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PosefoundryError, match="expected a GPU, and PyTorch sees none"):
        two.carry_out()


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(people: Path, settings: Train, tmp_path: Path) -> None:
    same = settings.model_copy(update={"freeze_batchnorm": True, "loader_workers": 0})
    plan_of(people, tmp_path / "1", same).carry_out()
    handler, environment = signal.getsignal(signal.SIGTERM), dict(os.environ)
    plan_of(people, tmp_path / "2", same.model_copy(update={"processes": 2})).carry_out()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert dict(os.environ) == environment

    def losses(n_processes: int) -> list[float]:
        with (tmp_path / str(n_processes) / "steps.csv").open() as stream:
            return [float(row["loss_total"]) for row in csv.DictReader(stream)]

    assert len(losses(1)) == 6
    assert losses(2) == pytest.approx(losses(1), rel=1e-4)
    left = {path.name for path in (tmp_path / "2").iterdir()}
    assert {"weights", "results.csv", "steps.csv"} <= left and not left & {PLAN, "checkpoints"}


def test_a_fault_of_several_processes_is_one_message_each_and_no_traceback(
    people: Path, settings: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = settings.model_copy(update={"processes": 2, "freeze_layers": 99})
    with pytest.raises(PosefoundryError, match=r"rank [01] ended with exit status 2"):
        plan_of(people, tmp_path, wrong).carry_out()
    told = capfd.readouterr().err
    assert "train: train.freeze_layers: expected fewer than the 23 layers" in told and "Traceback" not in told
