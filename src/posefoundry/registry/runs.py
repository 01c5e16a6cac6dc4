"""One MLflow run tells the story of one candidate: training opens it, later stages add to it."""

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from posefoundry.errors import PosefoundryError, StoppedError
from posefoundry.files import read_json, write_json_atomic
from posefoundry.registry import store
from posefoundry.registry.errands import Errands
from posefoundry.registry.lineage import dvc_hashes, git_commit, lineage_tags, system_tags
from posefoundry.registry.metric_sender import (
    LAST_ATTEMPT_S,
    MAX_METRICS_PER_BATCH,
    MetricSender,
    Point,
    now_ms,
    read_points,
    write_points,
)

# MLflow's limits, mlflow/utils/validation.py; longer values are refused by some of its stores, cut by others.
MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 5000

# What remembers a run that may be cut short, and what a finished one leaves unsent beside its run file.
RUN_FILE = "mlflow_run.json"
JOURNAL = "mlflow_metrics.jsonl"
UNSENT = "mlflow_unsent.json"

# How long each part of a requested stop waits: it has processes.GRACE_S in all, and the next process sends the rest.
STOPPING_S = 3.0

STAGE = "train"  # the stage that opens the run
RESTORED_FROM = "restored_from"
PROCESS = "process"


class TrainingRun:
    """A run that training fills as it goes; only rank 0 opens one.

    Leaving the block ends the run: FINISHED, KILLED after Ctrl-C or a requested stop, FAILED after any other error.
    Hours of training do not end because the tracking server does: once the run is open, what cannot be recorded is
    reported on stderr, and metrics are kept on disk until they have arrived. Nothing waits for the server but the end.
    """

    def __init__(
        self, run_id: str, experiment: str, name: str, journal: Path | None = None, all_again: bool = False
    ) -> None:
        self.run_id = run_id
        self.experiment = experiment
        self.name = name
        self._connection: Any = None
        self._run_file: Path | None = None
        self._metrics = MetricSender(lambda points: _send(self._client, run_id, points), journal, all_again)
        self._errands = Errands("mlflow-files")

    @property
    def _client(self) -> Any:
        """The store, which may become reachable only later."""
        self._connection = self._connection or store.client()
        return self._connection

    @classmethod
    @store.faults_explained
    def start(
        cls, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None,
        *, kept_in: Path | None = None,
    ) -> Self:  # fmt: skip
        """Opens a run with its parameters, its origin (git commit, DVC hashes) and facts of the machine.

        Args:
            experiment: The MLflow experiment; created where it is missing.
            name: The run's name for people.
            params: Parameters, nested as they like; keys become `train.loss.box`.
            tags: More tags.
            kept_in: A folder that outlives this process, and remembers the run and its metrics: where it holds a run
                that was cut short, that one goes on, also while the store cannot be reached.

        Raises:
            PosefoundryError: The tracking store cannot be reached.
        """
        memory = kept_in / RUN_FILE if kept_in else None
        journal = kept_in / JOURNAL if kept_in else None
        known = _run_to_go_on_with(memory) if memory else None
        if known and _is_active(known):
            opened = cls(known, experiment, name, journal)
            opened._attempt("that the run goes on", opened._go_on)
            return opened
        client, experiment_id = store.client(), store.experiment_id(experiment)
        _close_orphans(client, experiment_id)
        all_tags = {**lineage_tags(), **system_tags(), "stage": STAGE, PROCESS: _this_process(), **(tags or {})}
        run = client.create_run(experiment_id, run_name=name, tags=_within_limits(all_tags))
        opened = cls(run.info.run_id, experiment, name, journal, all_again=True)
        _log_params(client, opened.run_id, params)
        if memory:
            opened.write_run_file(memory)
        return opened

    def _go_on(self) -> None:
        self._client.update_run(self.run_id, status="RUNNING")
        _log_tags(self._client, self.run_id, {PROCESS: _this_process()})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        was_asked = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit | StoppedError)
        patience_s = STOPPING_S if was_asked and self._metrics.outlives_process else LAST_ATTEMPT_S
        unsent = self._metrics.close(patience_s)
        if n_undone := self._errands.wait(0 if unsent else patience_s):
            print(f"MLflow: {n_undone} files or other entries of the run could not be recorded.", file=sys.stderr)
        if kind is None and unsent and self._run_file:
            path = self._run_file.with_name(UNSENT)
            write_points(path, unsent)
            print(f"MLflow: {len(unsent)} metrics wait in {path} for the next stage to send them.", file=sys.stderr)
        self._end("FINISHED" if kind is None else "KILLED" if was_asked else "FAILED", patience_s)

    def _end(self, status: str, patience_s: float) -> None:
        """Tells the store, in a thread of its own: a request that is never answered takes minutes to give up."""
        ending = Errands("mlflow-end")
        if status == "FINISHED":
            ending.add(lambda: self._attempt("the stage's tag", self._tag_done))
        ending.add(lambda: self._attempt("the run's end", lambda: self._client.set_terminated(self.run_id, status)))
        if ending.wait(patience_s):
            print(f"MLflow: the run's end ({status}) could not be recorded: no answer.", file=sys.stderr)

    def _tag_done(self) -> None:
        _tag_stage_done(self._client, self.run_id, STAGE)

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Records metrics of one step in one request; None, a metric that does not exist here, is left out."""
        self._metrics.add(_points(metrics, step))

    def go_back(self) -> None:
        """Lets metrics of steps that were told already be recorded again: the training repeats them with other values.

        MLflow forgets nothing: it keeps both, and the later is the one that counts.
        """
        self._metrics.go_back()

    def log_image(self, image_rgb: np.ndarray, name: str) -> None:
        """Records an image (H, W, 3) uint8 RGB as `images/<name>.png`."""
        image_bgr = np.array(image_rgb[..., ::-1], order="C")  # a copy: it is written later

        def log() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f"{name.removesuffix('.png')}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(cv2.imencode(".png", image_bgr)[1].tobytes())
                _log_artifact(self._client, self.run_id, path, Path("images", name).parent.as_posix())

        self._soon(f"the image {name}", log)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Records a file, or a folder with all in it, under `folder` of the run's artifacts.

        It is read when its turn comes, at the run's end at the latest.
        """
        self._soon(str(path), lambda: _log_artifact(self._client, self.run_id, path, folder))

    def log_dataset(self, path: Path) -> None:
        """Records a data folder, by its path in dvc.yaml, as what was learnt from; its digest is the hash DVC knows."""

        def log() -> None:
            from mlflow.entities import DatasetInput, InputTag

            from posefoundry.registry.dataset import dvc_dataset

            key = path.as_posix()
            dataset = dvc_dataset(key, dvc_hashes().get(key), git_commit().commit)
            tag = InputTag("mlflow.data.context", "training")
            self._client.log_inputs(self.run_id, [DatasetInput(dataset._to_mlflow_entity(), [tag])])

        self._soon(f"the dataset {path}", log)

    def write_run_file(self, path: Path) -> None:
        """Writes where this run is, for the stages that add to it."""
        self._run_file = path
        where = {"run_id": self.run_id, "run_name": self.name, "experiment": self.experiment}
        write_json_atomic(path, {**where, "tracking_uri": store.without_password(store.tracking_uri())})

    def _soon(self, what: str, action: Callable[[], None]) -> None:
        """Has something attempted as soon as what was asked for before has been."""
        self._errands.add(lambda: self._attempt(what, action))

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a store fails in as many ways as it has kinds, and none may end the training
            print(f"MLflow: could not record {what}: {error}", file=sys.stderr)


@store.faults_explained
def log_to_run(
    run_file: Path,
    metrics: Mapping[str, float | None],
    artifacts: Sequence[Path] = (),
    tags: Mapping[str, str] | None = None,
    *,
    stage: str | None = None,
) -> str:
    """Adds a later stage's findings to the training run.

    A run that this store does not know (another machine, a store begun anew) is replaced by a new one of the same
    name, tagged `restored_from`; the run file stays as it is, and all later stages find that same replacement.

    Args:
        run_file: What `TrainingRun.write_run_file` wrote.
        metrics: Metrics; None is left out.
        artifacts: Files and folders, recorded under the stage's name.
        tags: Tags to set.
        stage: The stage that speaks; it leaves the tag `stage.<stage>` with the time in UTC.

    Returns:
        The id of the run that was added to.

    Raises:
        PosefoundryError: The run file is missing or broken, or the store cannot be reached.
    """
    client = store.client()
    run_id = run_of_file(run_file)
    unsent = read_points(run_file.with_name(UNSENT))  # of the training; the same point sent twice is one point
    _send(client, run_id, [*unsent, *_points(metrics, step=0)])
    for path in artifacts:
        _log_artifact(client, run_id, path, stage)
    _log_tags(client, run_id, tags or {})
    if stage:
        _tag_stage_done(client, run_id, stage)
    return run_id


@store.faults_explained
def run_of_file(run_file: Path) -> str:
    """Returns the id of the run that a run file speaks of, or of the one that replaces it in this store.

    Raises:
        PosefoundryError: The run file is missing or broken, or the store cannot be reached.
    """
    content = read_json(run_file)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), str) for k in ("run_id", "experiment")):
        raise PosefoundryError(
            f"{run_file}: expected run_id and experiment of an MLflow run, got {str(content)[:200]}. "
            "Run the train stage again: dvc repro --force train."
        )
    client, mlflow = store.client(), store.import_mlflow()
    lost_id, experiment = content["run_id"], content["experiment"]
    try:
        if client.get_run(lost_id).info.lifecycle_stage == "active":
            return lost_id
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    experiment_id = store.experiment_id(experiment)
    replaced = client.search_runs([experiment_id], filter_string=f"tags.{RESTORED_FROM} = '{lost_id}'", max_results=1)
    if replaced:
        return replaced[0].info.run_id
    tags = {**lineage_tags(), RESTORED_FROM: lost_id}
    run = client.create_run(experiment_id, run_name=content.get("run_name"), tags=tags)
    client.set_terminated(run.info.run_id)
    print(
        f"MLflow: the training run {lost_id} is not in {store.without_password(store.tracking_uri())}; "
        f"a new run {run.info.run_id} takes its place."
    )
    return run.info.run_id


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turns nested parameters into one level: `{"loss": {"box": 7.5}}` becomes `{"loss.box": "7.5"}`."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _this_process() -> str:
    return f"{platform.node()}:{os.getpid()}"


def _close_orphans(client: Any, experiment_id: str) -> None:
    """Ends the runs of processes of this machine that were killed; without that they would look alive for ever."""
    for run in client.search_runs([experiment_id], filter_string="attributes.status = 'RUNNING'"):
        node, _, pid = run.data.tags.get(PROCESS, "").rpartition(":")
        if node == platform.node() and not _is_alive(int(pid)):
            client.set_terminated(run.info.run_id, "KILLED")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _log_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    entries = [Param(key, _shortened(value, MAX_PARAM_LENGTH)) for key, value in flatten(params).items()]
    for start in range(0, len(entries), MAX_PARAMS_PER_BATCH):
        client.log_batch(run_id, params=entries[start : start + MAX_PARAMS_PER_BATCH])


def _log_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    if tags:
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in _within_limits(tags).items()])


def _tag_stage_done(client: Any, run_id: str, stage: str) -> None:
    _log_tags(client, run_id, {f"stage.{stage}": datetime.now(UTC).isoformat(timespec="seconds")})


def _log_artifact(client: Any, run_id: str, path: Path, folder: str | None) -> None:
    if path.is_dir():
        inside = path.name if folder is None else f"{folder}/{path.name}"
        client.log_artifacts(run_id, str(path), inside)
    else:
        client.log_artifact(run_id, str(path), folder)


def _points(metrics: Mapping[str, float | None], step: int) -> list[Point]:
    return [Point(key, float(value), now_ms(), step) for key, value in metrics.items() if value is not None]


def _send(client: Any, run_id: str, points: Sequence[Point]) -> None:
    from mlflow.entities import Metric

    for start in range(0, len(points), MAX_METRICS_PER_BATCH):
        batch = [Metric(*point) for point in points[start : start + MAX_METRICS_PER_BATCH]]
        client.log_batch(run_id, metrics=batch)


def _run_to_go_on_with(memory: Path) -> str | None:
    """Returns the run that a folder remembers, if it lies in the present store."""
    try:
        content = read_json(memory)
    except PosefoundryError:
        return None
    is_here = content.get("tracking_uri") == store.without_password(store.tracking_uri())
    return content["run_id"] if is_here else None


def _is_active(run_id: str) -> bool:
    """Tells whether a run can go on: it has not been deleted. A store that does not answer gets the benefit of it."""
    mlflow = store.import_mlflow()
    try:
        return bool(store.client().get_run(run_id).info.lifecycle_stage == "active")
    except mlflow.MlflowException as error:
        return error.error_code != "RESOURCE_DOES_NOT_EXIST"
    except Exception as error:  # whatever a store that is down raises
        print(
            f"MLflow: {error} The run {run_id} goes on; what it tells is kept until the store answers.", file=sys.stderr
        )
        return True


def _within_limits(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key: _shortened(str(value), MAX_TAG_LENGTH) for key, value in tags.items()}


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
