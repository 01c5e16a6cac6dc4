"""The train stage as a command: its files, its MLflow run, its refusals."""

import csv
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from posefoundry.models.weights import load_model

MakeProject = Callable[..., Any]


def wait_for(condition: Callable[[], bool], timeout_s: float = 100) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def project(trained_by_two: Any) -> Path:
    return trained_by_two.root


@pytest.mark.slow
def test_weights_load_and_know_what_they_are(project: Path) -> None:
    for name in ("best", "last"):
        model, info = load_model(project / "models/train" / f"{name}.safetensors")
        assert (info.architecture, info.image_size_px, info.n_classes) == ("yolov8n-pose", 64, 1)
        assert not model.training
    sidecar = json.loads((project / "models/train/last.json").read_text())
    assert sidecar["extra"]["epoch"] == 8
    assert "oks_ap" in sidecar["extra"]["val_metrics"]


@pytest.mark.slow
def test_logs_and_pictures(project: Path) -> None:
    report = project / "reports/train"
    rows = list(csv.DictReader((report / "results.csv").open()))
    assert [row["epoch"] for row in rows] == [str(n) for n in range(1, 9)]
    assert float(rows[-1]["loss_total"]) < float(rows[0]["loss_total"])
    assert len(list(csv.DictReader((report / "steps.csv").open()))) == 32
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
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss_total")] == [*range(1, 9)]
    (dataset,) = run.inputs.dataset_inputs
    assert "0123456789abcdef0123456789abcdef" in dataset.dataset.digest
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True)
    assert run.data.tags["git.commit"] == head.stdout.strip()
    assert len(client.list_artifacts(run.info.run_id, "images")) >= 5
    kept = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "train")}
    assert kept == {"results.csv", "results.json", "steps.csv", "plots"}


@pytest.mark.slow
def test_failed_data_checks_stop_it(training_project: MakeProject, tmp_path: Path) -> None:
    project = training_project(tmp_path / "project")
    (project.root / "checks.json").write_text('{"passed": false}')
    status, told = project.run()
    assert status == 2
    assert "data checks did not pass" in told
    assert "Traceback" not in told
    assert not (project.root / "models").exists()


@pytest.mark.slow
def test_killed_stage_takes_its_processes_with_it(training_project: MakeProject, tmp_path: Path) -> None:
    stage = training_project(tmp_path / "project", processes=2, epochs=500).start()
    wait_for(lambda: len(psutil.Process(stage.pid).children(recursive=True)) >= 2)
    family = psutil.Process(stage.pid).children(recursive=True)
    stage.kill()
    stage.communicate()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_fault_in_a_process_is_one_message(training_project: MakeProject, tmp_path: Path) -> None:
    status, told = training_project(tmp_path / "project", processes=2, weights="nothing-here.safetensors").run()
    assert status == 2
    assert "nothing-here.safetensors" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_process_that_stalls_is_named_and_its_run_ends_as_failed(
    training_project: MakeProject, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    project = training_project(tmp_path / "project", processes=2, epochs=500, stall_timeout_s=20)
    stage = project.start()
    wait_for(lambda: stage.poll() is not None or (project.root / "reports/train/steps.csv").is_file())
    assert stage.poll() is None, stage.communicate()[0]
    workers = psutil.Process(stage.pid).children(recursive=True)
    (second,) = (worker for worker in workers if worker.environ().get("RANK") == "1")
    second.suspend()
    told, _ = stage.communicate(timeout=100)
    assert stage.returncode == 2
    assert "rank 1" in told
    assert "Traceback" not in told
    where = json.loads((project.root / "models/train/mlflow_run.json").read_text())
    assert MlflowClient(f"sqlite:///{project.root}/mlflow.db").get_run(where["run_id"]).info.status == "FAILED"
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
