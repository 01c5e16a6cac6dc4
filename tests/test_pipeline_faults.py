"""A kill -9 in the middle of each stage of a small real pipeline: the next run completes, nothing half-made counts."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from posefoundry.orchestration.dvc_graph import Outcome, run_stage

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES = list(yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"])
WRITTEN_BY_STAGES = ("data", "models", "reports", "mlflow.db")
LONGEST_LIFE_S = 4.0  # a stage that has written nothing by then is killed at its computing


@pytest.fixture(scope="module")
def small_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The product's own pipeline with the parameters of continuous integration, on still smaller pictures."""
    from dvc.repo import Repo

    root = tmp_path_factory.mktemp("pipeline") / "project"
    root.mkdir()
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    shutil.copytree(REPOSITORY / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("source", "corrections"):
        (root / "data" / name).mkdir(parents=True)
    shutil.copy(REPOSITORY / "data" / "tags.csv", root / "data")
    params = yaml.safe_load((REPOSITORY / "infra" / "ci-params.yaml").read_text())
    params["ingest"]["synthetic"] |= {"image_size_px": 64, "train_images": 8, "val_images": 2, "test_images": 2}
    params["train"] |= {"image_size_px": 64, "batch_size": 4}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("DVC_SITE_CACHE_DIR", str(root.parent / "site"))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.setenv("SHELL", "/bin/sh")  # unlike bash, it may stay between DVC and the stage
        patch.setenv("OMP_NUM_THREADS", "1")  # pictures this small gain nothing from threads that wait for each other
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        patch.chdir(root)
        Repo.init(str(root), no_scm=True).close()
        yield root


@pytest.mark.parametrize("stage", STAGES)
def test_killed_stage_is_made_anew(small_project, stage):
    for earlier in STAGES[: STAGES.index(stage)]:
        if earlier not in _locked(small_project):
            run_stage(earlier, project=small_project)

    _kill_in_the_middle(stage, small_project)
    assert stage not in _locked(small_project)

    assert run_stage(stage, project=small_project) is Outcome.RAN
    outputs = [small_project / entry["path"] for entry in _locked(small_project)[stage]["outs"]]
    assert all(output.exists() for output in outputs)
    left_over = [
        path for folder in ("data", "models", "reports") for path in small_project.glob(f"{folder}/**/.*.partial")
    ]
    assert left_over == []


def test_after_all_kills_the_pipeline_is_whole(small_project):
    from posefoundry.files import read_json
    from posefoundry.registry import store

    again = subprocess.run(["dvc", "repro"], cwd=small_project, capture_output=True, text=True, check=True)
    assert "Data and pipelines are up to date." in again.stdout
    assert "Running stage" not in again.stdout
    registered = read_json(small_project / "reports/register/version.json")
    candidate = store.client().get_model_version_by_alias(registered["model_name"], "candidate")
    assert str(candidate.version) == registered["version"]


def _locked(project: Path) -> dict[str, dict]:
    """The stages that DVC takes for done."""
    lock = project / "dvc.lock"
    return yaml.safe_load(lock.read_text())["stages"] if lock.exists() else {}


def _kill_in_the_middle(stage: str, project: Path) -> None:
    """Starts `dvc repro` and kills it as soon as the stage has begun to write, or is at work for a while."""
    before = _files(project)
    dvc = subprocess.Popen(["dvc", "repro", "--single-item", stage], cwd=project, stdout=subprocess.DEVNULL)
    while not (command := psutil.Process(dvc.pid).children()):
        assert dvc.poll() is None, f"{stage} did not start"
        time.sleep(0.01)
    began = time.monotonic()
    while _files(project) <= before and time.monotonic() - began < LONGEST_LIFE_S:
        time.sleep(0.005)
    assert dvc.poll() is None, f"{stage} ended before it could be killed"
    family = [*command, *command[0].children(recursive=True)]
    dvc.kill()
    dvc.wait()
    _, alive = psutil.wait_procs(family, timeout=40)  # a training saves first
    assert alive == [], "processes of the stage outlive DVC"


def _files(project: Path) -> set[tuple[str, int]]:
    """Name and time of all that stages have written, half-made folders included."""
    found = set()
    for name in WRITTEN_BY_STAGES:
        for path in (project / name, *(project / name).rglob("*")):
            try:
                found.add((str(path), path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
    return found
