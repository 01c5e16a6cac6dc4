"""The train stage, killed and stopped on the way: the next run goes on, and the outcome is the same to the last bit."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from posefoundry.config import Convert, Ingest, SyntheticSource
from posefoundry.stages import convert, ingest

pytestmark = pytest.mark.slow

# 16 images in batches of 4: 4 steps an epoch, 32 in all.
SETTINGS = {
    "model": "yolov8n-pose",
    "epochs": 8,
    "batch_size": 4,
    "image_size_px": 64,
    "device": "cpu",
    "precision": "float32",
    "optimizer": "adamw",
    "learning_rate": 0.002,
    "warmup_epochs": 0.5,
    "validate_every_epochs": 4,
    "checkpoint_every_steps": 3,
}
COMMAND = [sys.executable, "-m", "posefoundry.stages.train", "--raw", "data/raw", "--yolo", "data/yolo"]
COMMAND += ["--data-checks", "checks.json", "--checkpoints", "models/checkpoints", "--models", "models/train"]
COMMAND += ["--report", "reports/train"]
DVC = [sys.executable, "-m", "dvc", "repro"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    synthetic = SyntheticSource(image_size_px=64, train_images=16, val_images=2, test_images=2)
    ingest.run(Ingest(synthetic=synthetic), raw=root / "raw", report=root / "ingest.json")
    convert.run(
        Convert(), raw=root / "raw", yolo=root / "yolo", receipt=root / "receipt.jsonl", report=root / "convert.json"
    )
    return root


def project(root: Path, data: Path, processes: int) -> Path:
    root.mkdir()
    (root / "data").symlink_to(data)
    (root / "checks.json").write_text('{"passed": true}')
    (root / "params.yaml").write_text(yaml.safe_dump({"train": SETTINGS | {"processes": processes}}))
    stage = {"cmd": "exec " + " ".join(COMMAND), "params": ["train"], "deps": ["checks.json"]}
    stage["outs"] = ["models/train", "reports/train"]
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    return root


def start(command: list[str], root: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(root / "site")}
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(command: list[str], root: Path) -> str:
    process = start(command, root)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for_checkpoint(process: subprocess.Popen[str], root: Path, after_step: int) -> None:
    """Returns a moment after a checkpoint of a later step has appeared; which moment is up to chance."""
    folder = root / "models" / "checkpoints"
    while not any(int(path.stem.removeprefix("step-")) > after_step for path in folder.glob("*/step-*.json")):
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
    assert not (root / "models" / "checkpoints").exists()
    return {
        **weights,
        "steps.csv": (root / "reports/train/steps.csv").read_text(),
        "epochs": losses,
        "run": run.info.status,
        "told": [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "step_loss_total")],
        "told of epochs": [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "loss_total")],
    }


def test_killed_under_dvc_it_resumes(data: Path, tmp_path: Path) -> None:
    whole, broken = (project(tmp_path / name, data, 1) for name in ("whole", "broken"))
    finish(COMMAND, whole)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=broken, check=True)
    dvc = start(DVC, broken)
    wait_for_checkpoint(dvc, broken, after_step=0)
    (stage,) = psutil.Process(dvc.pid).children()
    stage.kill()
    assert "failed to reproduce 'train'" in dvc.communicate(timeout=60)[0]
    assert "Going on after step" in finish(DVC, broken)
    assert outcome(broken) == outcome(whole)


def test_two_processes_killed_and_stopped_on_the_way(data: Path, tmp_path: Path) -> None:
    whole, broken = (project(tmp_path / name, data, 2) for name in ("whole", "broken"))
    finish(COMMAND, whole)
    killed = start(COMMAND, broken)
    wait_for_checkpoint(killed, broken, after_step=0)
    family = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.communicate()
    psutil.wait_procs(family, timeout=20)

    stopped = start(COMMAND, broken)
    steps = [int(path.stem.removeprefix("step-")) for path in broken.glob("models/checkpoints/*/step-*.json")]
    wait_for_checkpoint(stopped, broken, after_step=max(steps))
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 143, output
    assert "the next run goes on" in output

    robbed = start(COMMAND, broken)
    steps = [int(path.stem.removeprefix("step-")) for path in broken.glob("models/checkpoints/*/step-*.json")]
    wait_for_checkpoint(robbed, broken, after_step=max(steps))
    psutil.Process(robbed.pid).children()[1].kill()
    output, _ = robbed.communicate(timeout=300)
    assert robbed.returncode == 0, output
    assert "(killed by SIGKILL); all go on from the last checkpoint" in output
    assert output.count("Going on after step") == 2
    assert outcome(broken) == outcome(whole)


def test_a_changed_setting_starts_over_and_says_why(data: Path, tmp_path: Path) -> None:
    root = project(tmp_path / "project", data, 1)
    interrupted = start(COMMAND, root)
    wait_for_checkpoint(interrupted, root, after_step=0)
    interrupted.send_signal(signal.SIGTERM)
    assert "stopped by a signal after step" in interrupted.communicate(timeout=60)[0]
    changed = SETTINGS | {"learning_rate": 0.001, "epochs": 1}
    (root / "params.yaml").write_text(yaml.safe_dump({"train": changed}))
    output = finish(COMMAND, root)
    assert "is of another training: train.epochs, train.learning_rate differ." in output
    assert "Going on" not in output
    assert len(list(csv.DictReader((root / "reports/train/results.csv").open()))) == 1
