"""Stage train: from a checked dataset to the best weights by val OKS AP."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posefoundry.config import Register, Train
from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json, sha256_of_file, sole_use, write_json_atomic
from posefoundry.processes import GRACE_S, stop_on_signals
from posefoundry.stages import FINISHED, forget_finished_trainings, stop_with_dvc
from posefoundry.stages.runner import run_as_command
from posefoundry.training.checkpoint import CheckpointFolder, describe_others
from posefoundry.training.observer import FileLog, Observer
from posefoundry.training.progress import training_progress

if TYPE_CHECKING:
    from posefoundry.registry.runs import TrainingRun
    from posefoundry.training.session import BestSoFar

# A stage may still be saving when the next run of a killed DVC starts its own: so long that one waits.
OUTLIVES_DVC_S = GRACE_S + 15


def run(
    settings: Train,
    register: Register,
    *,
    raw: Path,
    yolo: Path,
    data_checks: Path,
    checkpoints: Path,
    models: Path,
    report: Path,
) -> None:
    """Train a YOLO pose model; keep the best and the last weights, the log, and one MLflow run."""
    if settings.total_processes > 1 and "WORLD_SIZE" not in os.environ:
        stop_with_dvc()
        _run_processes(settings)
        return
    if not read_json(data_checks).get("passed"):
        raise PosefoundryError(
            f"{data_checks}: the data checks did not pass; see reports/validate/docs, fix the data and run again."
        )
    _train(settings, register.experiment, raw=raw, yolo=yolo, checkpoints=checkpoints, models=models, report=report)


def _train(
    settings: Train, experiment: str, *, raw: Path, yolo: Path, checkpoints: Path, models: Path, report: Path
) -> None:
    """Trains in this process, alone or as one of several."""
    from posefoundry.training.batch_size import with_batch_so_far, with_batch_that_fits
    from posefoundry.training.distributed import join_process_group, watched
    from posefoundry.training.identity import identity_on_all_hosts
    from posefoundry.training.session import train_model

    dataset_yaml, val_annotations = yolo / "dataset.yaml", raw / "annotations" / "val.json"
    with ExitStack() as stack:
        should_stop = stack.enter_context(stop_on_signals())
        stop_with_dvc()
        group = stack.enter_context(join_process_group(settings.device, settings.stall_timeout_s))
        log = FileLog(report)
        observers: list[Observer] = []  # in the main process, once the training is about to begin
        folder = CheckpointFolder(checkpoints, settings.keep_checkpoints)
        with watched(group, settings.stall_timeout_s, partial(_fail_mlflow_run, observers)):
            identity = identity_on_all_hosts(
                settings, group, dataset_yaml=dataset_yaml, val_annotations=val_annotations
            )
            if group.is_main:
                stack.enter_context(sole_use(models.with_name(f".{models.name}.lock"), OUTLIVES_DVC_S))
                _empty(models, report)  # what belongs there of an interrupted training, its checkpoint holds
                folder = _own_folder(settings, checkpoints, identity, yolo)
            settings = with_batch_that_fits(with_batch_so_far(settings, folder, group), group, dataset_yaml)
            if group.is_main:
                mlflow_log = stack.enter_context(_mlflow_log(settings, experiment, yolo, models, report, folder.path))
                observers += [log, stack.enter_context(training_progress()), mlflow_log]
            best = train_model(
                settings,
                dataset_yaml=dataset_yaml,
                val_annotations=val_annotations,
                weights_folder=models,
                group=group,
                observers=observers,
                checkpoints=folder,
                should_stop=should_stop,
            )
        if group.is_main:
            _write_results(best, log.epochs, report)
            print(f"Best weights: epoch {best.epoch}, val OKS AP {best.value:.3f} -> {models / 'best.safetensors'}")
    if group.is_main:  # DVC has yet to record what was made; should it not come to that, this spares the training
        folder.keep_newest()
        (folder.path / FINISHED).touch()


def _empty(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)


def _own_folder(settings: Train, checkpoints: Path, identity: dict[str, Any], yolo: Path) -> CheckpointFolder:
    """Returns the folder of this very training; tells of others' that lie beside it."""
    from posefoundry.registry.lineage import dvc_hashes
    from posefoundry.training.identity import digest

    if content := dvc_hashes().get(yolo.as_posix()):
        identity = identity | {"data by DVC": content}
    folder = CheckpointFolder(checkpoints / digest(identity), settings.keep_checkpoints, identity)
    if not folder.steps():
        forget_finished_trainings(checkpoints)
        for sentence in describe_others(folder):
            print(sentence)
    return folder


def _write_results(best: "BestSoFar", epochs: list[dict[str, float | None]], report: Path) -> None:
    """Draws the curves, and adds to the log which epoch is best."""
    from posefoundry.evaluation.learning_curves import plot_learning_curves

    plot_learning_curves(epochs, report / "plots" / "learning_curves.png")
    write_json_atomic(
        report / "results.json", {"best_epoch": best.epoch, "best_val_oks_ap": best.value, "epochs": epochs}
    )


def _run_processes(settings: Train) -> None:
    """Starts this same command once a process, and again where one is lost."""
    from posefoundry.training.launch import run_processes

    run_processes([sys.executable, "-m", "posefoundry.stages.train", *sys.argv[1:]], settings)


class _MlflowLog(Observer):
    """Sends the training's numbers and pictures to its MLflow run."""

    SEND_STEPS_EVERY = 10

    def __init__(self, run: "TrainingRun") -> None:
        self.run = run
        self._has_begun = False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back; at the start nothing is to be done: a training that was cut short repeats what it told."""
        if self._has_begun:
            self.run.go_back()

    def step_done(self, step: int, n_steps: int, values: dict[str, float]) -> None:
        self._has_begun = True
        if step % self.SEND_STEPS_EVERY == 0:
            self.run.log_metrics({f"step_{name}": value for name, value in values.items()}, step=step)

    def epoch_done(self, epoch: int, values: dict[str, float | None]) -> None:
        self.run.log_metrics(values, step=epoch)

    def picture(self, name: str, image_bgr: np.ndarray) -> None:
        self.run.log_image(image_bgr[..., ::-1], name)


def _fail_mlflow_run(observers: Sequence[Observer], cause: str) -> None:
    """Ends the run as failed, where it has begun, for a process that is about to end without cleaning up."""
    for observer in observers:
        if isinstance(observer, _MlflowLog):
            observer.run.__exit__(PosefoundryError, PosefoundryError(cause), None)


@contextmanager
def _mlflow_log(
    settings: Train, experiment: str, yolo: Path, models: Path, report: Path, checkpoints: Path
) -> Iterator[_MlflowLog]:
    """Opens the run, or goes on with it; in the end it keeps the logs and plots."""
    from posefoundry.registry.runs import TrainingRun

    params = {"train": settings.model_dump(mode="json")}
    start = settings.weights
    origin = {"train.weights_sha256": sha256_of_file(start)} if start and start.is_file() else {}
    name = f"{settings.model} {settings.epochs} epochs"
    with TrainingRun.start(experiment, name, params, origin, kept_in=checkpoints) as run:
        run.log_dataset(yolo)
        run.write_run_file(models / "mlflow_run.json")
        yield _MlflowLog(run)
        for path in (report / "results.csv", report / "results.json", report / "steps.csv", report / "plots"):
            run.log_artifact(path, "train")


if __name__ == "__main__":
    run_as_command("train", run)
