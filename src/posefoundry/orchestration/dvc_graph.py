"""The pipeline as DVC knows it: its stages in order, and the running of one of them.

dvc.yaml is the only list of stages. Whoever schedules them (flows/retrain.py) reads it here.
"""

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.params import describe_validation_error
from posefoundry.stages.runner import OFFLINE_ENVIRONMENT
from posefoundry.values import NonNegativeFloat, NonNegativeInt, PositiveFloat

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage

LAST_LINES = 15
GRACE_S = 15.0


class Outcome(StrEnum):
    """How a stage came to its result."""

    RAN = "ran"
    CACHED = "cached"  # nothing it depends on has changed
    RESTORED = "restored"  # the same inputs were seen before: taken from DVC's run cache


# What DVC says about a stage; it tells the three outcomes apart in its log alone.
_REMARKS = {
    re.compile(r"Running stage '(?P<stage>.+)':"): Outcome.RAN,
    re.compile(r"Stage '(?P<stage>.+)' is cached - skipping run, checking out outputs"): Outcome.RESTORED,
    re.compile(r"Stage '(?P<stage>.+)' didn't change, skipping"): Outcome.CACHED,
}
_EXIT_STATUS = re.compile(r"^ERROR: failed to reproduce .*exited with (?P<status>-?\d+)$")
# After these it speaks of git and remotes.
_EPILOGUE = ("Generating lock file 'dvc.lock'", "Updating lock file 'dvc.lock'")


class StageFailedError(PosefoundryError):
    """A stage did not come to its end; the message holds the last lines it wrote."""


class RetryPolicy(BaseModel):
    """What `meta:` of a stage in dvc.yaml may say about running it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    retries: NonNegativeInt = 0
    retry_delay_s: NonNegativeFloat = 0.0
    time_limit_s: PositiveFloat | None = None


@dataclass(frozen=True)
class PipelineStage:
    """A stage of dvc.yaml.

    Attributes:
        name: As DVC addresses it.
        command: What DVC runs.
        needs: Names of the stages whose outputs it reads, in order of execution.
        policy: Retries, their delay and the time limit.
    """

    name: str
    command: str
    needs: tuple[str, ...]
    policy: RetryPolicy


def read_pipeline(project: Path) -> list[PipelineStage]:
    """Reads the stages of a project in an order in which they can run.

    Raises:
        PosefoundryError: `project` is no DVC project, its dvc.yaml cannot be read, or a stage's `meta:` is wrong.
    """
    import networkx

    with _opened(project) as repo:
        position = {stage: index for index, stage in enumerate(repo.index.stages)}
        names = {stage: _name(stage, project) for stage in position}
        graph = repo.index.graph  # an edge leads from a stage to what it needs
        order = list(networkx.lexicographical_topological_sort(graph.reverse(), key=position.__getitem__))
        rank = {stage: index for index, stage in enumerate(order)}
        # A .dvc file (data that was added, not made) is in the graph too, but there is nothing to run.
        return [
            PipelineStage(
                name=names[stage],
                command=stage.cmd if isinstance(stage.cmd, str) else "\n".join(stage.cmd),
                needs=tuple(names[need] for need in sorted(graph.successors(stage), key=rank.__getitem__) if need.cmd),
                policy=_policy(names[stage], stage.meta),
            )
            for stage in order
            if stage.cmd
        ]


@contextmanager
def _opened(project: Path) -> Iterator["Repo"]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(project)) as repo:
            yield repo
    except DvcException as error:
        causes = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
        raise PosefoundryError(f"{project}: expected a DVC project, got: {': '.join(causes)}") from error


def _name(stage: "Stage", project: Path) -> str:
    """What DVC calls a stage when it runs in the project's folder (its own answer depends on the current folder)."""
    file = os.path.relpath(stage.path, project)
    name = getattr(stage, "name", None)
    return name if name and file == "dvc.yaml" else f"{file}:{name}" if name else file


def _policy(stage: str, meta: object) -> RetryPolicy:
    try:
        return RetryPolicy.model_validate(meta or {})
    except ValidationError as error:
        raise PosefoundryError(f"dvc.yaml, meta of {stage}: {describe_validation_error(error, RetryPolicy)}") from None


@contextmanager
def sole_run(project: Path, *, on_wait: Callable[[], None]) -> Iterator[None]:
    """Lets one run at a time work through a project's stages; the next waits for its turn.

    DVC's own lock guards a single command: between two stages it is free, and a stage that another run has begun
    would be an error.
    """
    path = project / ".dvc" / "tmp" / "flow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def run_stage(
    name: str,
    *,
    project: Path,
    on_line: Callable[[str], None] = print,
    time_limit_s: float | None = None,
    force: bool = False,
) -> Outcome:
    """Runs one stage by DVC, if it has to run at all.

    Args:
        name: A stage of dvc.yaml.
        project: The folder with dvc.yaml.
        on_line: Called with each line of the stage, and what DVC says about it, while they run.
        time_limit_s: After this the stage is stopped and counts as failed.
        force: Whether it runs although nothing that DVC knows of has changed.

    Raises:
        RejectedError: The stage is a gate and said no (exit status 3).
        StageFailedError: It failed, was stopped at its time limit, or DVC could not run it.
    """
    lines = _Transcript(name)
    command = ["--wait-for-lock", "repro", "--single-item", *(["--force"] if force else []), name]
    with _running_dvc(command, project) as process, _time_limit(process, time_limit_s) as out_of_time:
        for line in process.stdout or ():
            if lines.add(line.rstrip()):
                on_line(line.rstrip())
        status = process.wait()
    if out_of_time.is_set():
        raise StageFailedError(f"{name}: stopped at its time limit of {time_limit_s} s. {lines.tail()}")
    if status == 0 and lines.outcome:
        return lines.outcome
    if lines.exit_status == RejectedError.exit_status:
        raise RejectedError(lines.verdict())
    ending = f"ended with exit status {lines.exit_status}" if lines.exit_status else "was not run to its end by DVC"
    raise StageFailedError(f"{name}: {ending}. {lines.tail()}")


class _Transcript:
    """What a run says: DVC's remarks told from the stage's own lines."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.outcome: Outcome | None = None
        self.exit_status: int | None = None
        self._of_stage: deque[str] = deque(maxlen=LAST_LINES)
        self._all: deque[str] = deque(maxlen=LAST_LINES)
        self._is_over = False

    def add(self, line: str) -> bool:
        """Takes the next line; returns whether it is worth showing."""
        if not line or self._is_over:
            return False
        self._all.append(line)
        if failure := _EXIT_STATUS.match(line):
            self.exit_status = int(failure["status"])
        if self.outcome is None:
            self.outcome = self._outcome_in(line)
        elif line in _EPILOGUE:
            self._is_over = True
        elif self.outcome is Outcome.RAN and not line.startswith(("> ", "ERROR: ")):
            self._of_stage.append(line)
        return not self._is_over

    def _outcome_in(self, line: str) -> Outcome | None:
        for pattern, outcome in _REMARKS.items():
            remark = pattern.fullmatch(line)
            if remark and remark["stage"] == self.stage:
                return outcome
        return None

    def tail(self) -> str:
        """The last lines of the stage, or of DVC where the stage said nothing."""
        last = self._of_stage or self._all
        return "Its last lines:\n" + "\n".join(last) if last else "It wrote nothing."

    def verdict(self) -> str:
        """A gate's own words: what follows `<stage>: rejected.`."""
        words = "\n".join(self._of_stage)
        _, _, verdict = words.rpartition(f"{self.stage}: rejected. ")
        return verdict or f"{self.stage} said no."


@contextmanager
def _running_dvc(arguments: list[str], project: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts DVC in a process group of its own and stops it where the block ends by an exception."""
    with subprocess.Popen(
        [sys.executable, "-m", "posefoundry.orchestration.dvc_command", *arguments],
        cwd=project,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            yield process
        except BaseException:
            _stop(process)
            raise


@contextmanager
def _time_limit(process: subprocess.Popen[str], seconds: float | None) -> Iterator[threading.Event]:
    """Stops the process after `seconds` and sets the event it yields."""
    passed = threading.Event()

    def stop() -> None:
        passed.set()
        _stop(process)

    timer = threading.Timer(seconds or 0, stop)
    if seconds is not None:
        timer.start()
    try:
        yield passed
    finally:
        timer.cancel()


def _environment() -> dict[str, str]:
    """The environment of a stage: `python` is this interpreter, lines come unbuffered, nothing calls home."""
    here = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    return {**OFFLINE_ENVIRONMENT, **os.environ, "PATH": here + os.pathsep + path, "PYTHONUNBUFFERED": "1"}


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends DVC and all it has started: by an interrupt as from the keyboard, after a grace by force.

    DVC itself sits out the interrupt, sees its stage end and gives back its locks.
    """
    import psutil

    try:
        stage_processes = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return
    _, alive = psutil.wait_procs(stage_processes, timeout=GRACE_S)
    for member in alive:
        member.kill()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
