"""The train stage, killed and stopped on the way: the next run goes on, and the outcome is the same to the last bit."""

import csv
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from posefoundry.config import Train
from posefoundry.stages import train
from posefoundry.training.checkpoint import CheckpointFolder
from posefoundry.training.identity import identity_of_training

MakeProject = Callable[..., Any]
DVC = (sys.executable, "-m", "dvc")


def steps(root: Path) -> list[int]:
    sidecars = (root / "models" / "checkpoints").glob("*/step-*.json")
    return [0, *sorted(int(path.stem.removeprefix("step-")) for path in sidecars)]


def wait_for_checkpoint(process: subprocess.Popen[str], root: Path) -> None:
    """Returns a moment after a checkpoint of a later step has appeared; which moment is up to chance."""
    newest = steps(root)[-1]
    while steps(root)[-1] <= newest:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    time.sleep(random.SystemRandom().uniform(0, 0.3))
    assert process.poll() is None, process.communicate()[0]


def outcome(root: Path) -> dict[str, object]:
    """What must be the same, whatever happened on the way."""
    from mlflow import MlflowClient

    weights = {name: (root / "models/train" / f"{name}.safetensors").read_bytes() for name in ("best", "last")}
    epochs = list(csv.DictReader((root / "reports/train/results.csv").open()))
    losses = [(row["epoch"], row["loss_total"], row["val_oks_ap"]) for row in epochs]
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("posefoundry").experiment_id])
    assert run.info.run_id == json.loads((root / "models/train/mlflow_run.json").read_text())["run_id"]
    assert len(steps(root)) == 2 and list((root / "models/checkpoints").glob("*/finished"))  # until it is evaluated
    return {
        **weights,
        "steps.csv": (root / "reports/train/steps.csv").read_text(),
        "epochs": losses,
        "run": run.info.status,
        "told": [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "step_loss_total")],
        "told of epochs": [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "loss_total")],
    }


@pytest.mark.slow
def test_killed_under_dvc_it_resumes(training_project: MakeProject, tmp_path: Path) -> None:
    whole, broken = (training_project(tmp_path / name) for name in ("whole", "broken"))
    status, told = whole.run()
    assert status == 0, told
    stage = {"cmd": "exec " + " ".join(broken.command), "params": ["train"], "deps": ["checks.json"]}
    stage["outs"] = ["models/train", "reports/train"]
    (broken.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    assert broken.run(*DVC, "init", "-q", "--no-scm")[0] == 0
    dvc = broken.start(*DVC, "repro")
    wait_for_checkpoint(dvc, broken.root)
    (process,) = psutil.Process(dvc.pid).children()
    process.kill()
    assert "failed to reproduce 'train'" in dvc.communicate(timeout=60)[0]

    dvc = broken.start(*DVC, "repro")
    wait_for_checkpoint(dvc, broken.root)
    dvc.terminate()
    dvc.wait(20)
    status, told = broken.run(*DVC, "repro")  # while the stage may still be saving
    assert status == 0, told
    stopped = re.search(r"stopped by a signal (after step \d+) of", dvc.communicate(timeout=60)[0])
    assert stopped
    assert f"Going on {stopped[1]} of" in told
    assert outcome(broken.root) == outcome(whole.root)

    # All was made, but DVC was killed before it recorded that, and deletes it.
    for made in ("models/train", "reports/train"):
        shutil.rmtree(broken.root / made)
    status, told = broken.run()
    assert status == 0, told
    assert "Going on after step 32 of 32" in told
    assert outcome(broken.root) == outcome(whole.root)


@pytest.mark.slow
def test_two_processes_robbed_killed_and_stopped_on_the_way(
    trained_by_two: Any, training_project: MakeProject, tmp_path: Path
) -> None:
    broken = training_project(tmp_path / "broken", processes=2)
    robbed = broken.start()
    wait_for_checkpoint(robbed, broken.root)
    stage = psutil.Process(robbed.pid)
    first = set(stage.children())
    max(first, key=lambda process: process.pid).kill()
    while not (again := set(stage.children())) or again & first:
        assert robbed.poll() is None, robbed.communicate()[0]
        time.sleep(0.05)
    wait_for_checkpoint(robbed, broken.root)
    family = stage.children(recursive=True)
    robbed.kill()
    told, _ = robbed.communicate()
    psutil.wait_procs(family, timeout=20)
    assert "(killed by SIGKILL); all go on from the last checkpoint" in told
    assert told.count("Going on after step") == 1

    stopped = broken.start()
    wait_for_checkpoint(stopped, broken.root)
    stopped.send_signal(signal.SIGTERM)
    told, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 143, told
    assert "the next run goes on" in told
    assert told.count("stopped by a signal after step") == 1

    status, told = broken.run()
    assert status == 0, told
    assert told.count("Going on after step") == 1
    assert outcome(broken.root) == outcome(trained_by_two.root)


def test_a_changed_setting_starts_over_and_says_why(
    training_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def folder(**settings: Any) -> CheckpointFolder:
        yolo, val = training_data / "yolo", training_data / "raw" / "annotations" / "val.json"
        identity = identity_of_training(Train(**settings), dataset_yaml=yolo / "dataset.yaml", val_annotations=val)
        return train._own_folder(Train(**settings), tmp_path, identity, yolo)

    interrupted = folder(seed=1)
    interrupted.write(3, {}, {}, None)
    assert folder(seed=1).steps() == [3]
    assert folder(seed=1, processes=2, loader_workers=3, checkpoint_every_epochs=0).steps() == [3]
    assert capsys.readouterr().out == ""
    assert folder(seed=1, learning_rate=0.001, epochs=1, warmup_epochs=0).steps() == []
    told = capsys.readouterr().out
    different = "train.epochs, train.learning_rate, train.warmup_epochs"
    assert f"(step 3) belongs to another training (different: {different})." in told
