"""The train stage as a command: its files, its MLflow run, its refusals."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from posefoundry.config import Convert, Ingest, SyntheticSource
from posefoundry.models.weights import load_model
from posefoundry.stages import convert, ingest

SETTINGS = {
    "train": {
        "model": "yolov8n-pose",
        "epochs": 2,
        "batch_size": 8,
        "image_size_px": 64,
        "warmup_epochs": 0.5,
        "optimizer": "adamw",
        "learning_rate": 0.002,
    }
}

COMMAND = [sys.executable, "-m", "posefoundry.stages.train", "--raw", "data/raw", "--yolo", "data/yolo"]
COMMAND += [
    "--data-checks",
    "checks.json",
    "--checkpoints",
    "models/checkpoints",
    "--models",
    "models/train",
    "--report",
    "reports/train",
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose train stage has run, over two processes."""
    root = tmp_path_factory.mktemp("project")
    synthetic = SyntheticSource(image_size_px=64, train_images=16, val_images=4, test_images=4)
    ingest.run(Ingest(synthetic=synthetic), raw=root / "data/raw", report=root / "ingest.json")
    convert.run(
        Convert(),
        raw=root / "data/raw",
        yolo=root / "data/yolo",
        receipt=root / "receipt.jsonl",
        report=root / "convert.json",
    )
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"convert": {"outs": [
        {"path": "data/yolo", "md5": "0123456789abcdef0123456789abcdef.dir"}
    ]}}}))  # fmt: skip
    for command in (
        ["init", "-q"],
        ["add", "dvc.yaml"],
        ["-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)
    (root / "checks.json").write_text('{"passed": true}')
    result = run_stage(root, SETTINGS["train"] | {"processes": 2})
    assert result.returncode == 0, result.stderr
    return root


def run_stage(root: Path, train: dict) -> subprocess.CompletedProcess[str]:
    (root / "params.yaml").write_text(yaml.safe_dump({"train": train}))
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.run(COMMAND, cwd=root, env=environment, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.slow
def test_weights_load_and_know_what_they_are(project: Path) -> None:
    for name in ("best", "last"):
        model, info = load_model(project / "models/train" / f"{name}.safetensors")
        assert (info.architecture, info.image_size_px, info.n_classes) == ("yolov8n-pose", 64, 1)
        assert not model.training
    sidecar = json.loads((project / "models/train/last.json").read_text())
    assert sidecar["extra"]["epoch"] == 2
    assert "oks_ap" in sidecar["extra"]["val_metrics"]


@pytest.mark.slow
def test_logs_and_pictures(project: Path) -> None:
    report = project / "reports/train"
    rows = list(csv.DictReader((report / "results.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["loss_total"]) < float(rows[0]["loss_total"])
    assert len(list(csv.DictReader((report / "steps.csv").open()))) == 4
    assert (report / "plots/learning_curves.png").stat().st_size > 5000
    names = {path.name for path in (report / "samples").iterdir()}
    assert "train_batch_0.jpg" in names
    assert sum(name.startswith("val_") for name in names) == 4


@pytest.mark.slow
def test_one_mlflow_run_tells_the_story(project: Path) -> None:
    from mlflow import MlflowClient

    where = json.loads((project / "models/train/mlflow_run.json").read_text())
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("posefoundry")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == where["run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.params["train.loss.pose"] == "12.0"
    assert len(run.data.metrics) >= 30
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss_total")] == [1, 2]
    (dataset,) = run.inputs.dataset_inputs
    assert "0123456789abcdef0123456789abcdef" in dataset.dataset.digest
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True)
    assert run.data.tags["git.commit"] == head.stdout.strip()
    assert len(client.list_artifacts(run.info.run_id, "images")) >= 5


@pytest.mark.slow
def test_failed_data_checks_stop_it(project: Path, tmp_path: Path) -> None:
    for name in ("data", "dvc.yaml"):
        (tmp_path / name).symlink_to(project / name)
    (tmp_path / "checks.json").write_text('{"passed": false}')
    result = run_stage(tmp_path, SETTINGS["train"])
    assert result.returncode == 2
    assert "data checks did not pass" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_killed_stage_takes_its_processes_with_it(project: Path, tmp_path: Path) -> None:
    for name in ("data", "dvc.yaml", "checks.json"):
        (tmp_path / name).symlink_to(project / name)
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({"train": SETTINGS["train"] | {"processes": 2, "epochs": 500}})
    )
    stage = subprocess.Popen(COMMAND, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    family: list[psutil.Process] = []
    while len(family) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        family = psutil.Process(stage.pid).children(recursive=True)
    assert len(family) >= 2
    stage.kill()
    stage.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_fault_in_a_process_is_one_message(project: Path, tmp_path: Path) -> None:
    for name in ("data", "dvc.yaml", "checks.json"):
        (tmp_path / name).symlink_to(project / name)
    result = run_stage(tmp_path, SETTINGS["train"] | {"weights": "nothing-here.safetensors"})
    assert result.returncode == 2
    assert "nothing-here.safetensors" in result.stderr
    assert "Traceback" not in result.stderr
