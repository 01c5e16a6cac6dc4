"""Checkpoints: all that a training needs to go on as if nothing had happened, on disk, whole or not at all.

A checkpoint is `step-<n>.pt` (tensors and plain values, read back without running anything in it) and `step-<n>.json`
beside it, for people, with the SHA-256 of the former. The JSON is written last: without it there is no checkpoint.
"""

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch

from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json, sha256_of_file, write_json_atomic
from posefoundry.training.distributed import ProcessGroup

FORMAT = 1


class Stateful(Protocol):
    """A part of a training that can be put down and taken up."""

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Becomes what it was."""
        ...


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one training: the last few and the best.

    Attributes:
        path: The folder; made at the first checkpoint.
        keep: How many to keep besides the best.
        identity: What makes the training this one and no other; told in each sidecar.
    """

    path: Path
    keep: int
    identity: Mapping[str, Any] = field(default_factory=dict)

    def write(self, step: int, state: dict[str, Any], facts: Mapping[str, Any], best_step: int | None) -> bool:
        """Writes a checkpoint and drops those no longer needed.

        A disk that is full, or gone, costs this checkpoint, not the training: it is reported, and False returned.
        """
        others = {best_step} - {None}
        try:
            try:
                self._write(step, state, facts)
            except (OSError, RuntimeError):
                if len(self._sidecars()) < 2:
                    raise
                # Those kept besides the newest may be what there is no room for.
                self._drop_all_but(others, n_newest=1)
                self._write(step, state, facts)
        except (OSError, RuntimeError) as error:  # torch wraps some of the system's refusals
            print(
                f"Checkpoint of step {step} not written to {self.path}{_room(self.path)}: {error}. The training goes "
                "on; the previous checkpoint is kept.",
                file=sys.stderr,
            )
            return False
        self._drop_all_but({step, *others}, n_newest=self.keep)
        return True

    def _write(self, step: int, state: dict[str, Any], facts: Mapping[str, Any]) -> None:
        path = self.path / f"step-{step:09d}.pt"
        aside = path.with_name(f".{path.name}.partial")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as stream:
                torch.save(state, stream)
                stream.flush()
                os.fsync(stream.fileno())
            sidecar = {
                "format": FORMAT,
                "step": step,
                **facts,
                "saved_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "bytes": aside.stat().st_size,
                "sha256": sha256_of_file(aside),
                "identity": self.identity,
            }
            path.with_suffix(".json").unlink(missing_ok=True)  # of another file than the one that comes
            aside.replace(path)
            write_json_atomic(path.with_suffix(".json"), sidecar)
            _flush_folder(self.path)
        except (OSError, RuntimeError):
            _drop(aside)
            raise

    def read_newest(self) -> dict[str, Any] | None:
        """Returns the newest checkpoint that is whole; one that was cut short or altered is named and passed over."""
        for sidecar in reversed(self._sidecars()):
            try:
                return _read(sidecar)
            except PosefoundryError as error:
                print(f"{error} Skipping it.", file=sys.stderr)
        return None

    def steps(self) -> list[int]:
        """Returns the steps there are checkpoints of, whole or not, in rising order."""
        return [step for sidecar in self._sidecars() if (step := _step_of(sidecar)) is not None]

    def fact(self, name: str) -> Any:
        """Returns what the newest readable sidecar tells by a name, or None where none does."""
        for sidecar in reversed(self._sidecars()):
            try:
                return json.loads(sidecar.read_bytes())[name]
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    def keep_newest(self) -> None:
        """Forgets all but the newest: the training has come to its end."""
        self._drop_all_but(set(), n_newest=1)

    def clear(self) -> None:
        """Forgets the training."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):  # others lie beside it, or it is a link or a disk of its own
            self.path.parent.rmdir()

    def _sidecars(self) -> list[Path]:
        return sorted(path for path in self.path.glob("step-*.json") if _step_of(path) is not None)

    def _drop_all_but(self, steps: Collection[int | None], *, n_newest: int) -> None:
        sidecars = self._sidecars()
        kept = {*steps, *(_step_of(sidecar) for sidecar in sidecars[-n_newest:])}
        for sidecar in sidecars:
            if _step_of(sidecar) not in kept:
                _drop(sidecar)
        # Also what a kill left half written, or without its sidecar.
        left_over = [*self.path.glob(".step-*.partial"), *self.path.glob("step-*.pt")]
        for path in left_over:
            if path.name.startswith(".") or _step_of(path) not in {*kept, None}:
                _drop(path)


class Checkpoints:
    """Puts down the parts of a training in one checkpoint and takes them up again, in all processes alike.

    Args:
        folder: Where they lie, on the main process's disk; None keeps none.
        group: This process among its peers.
        shared: Parts that each process has and that are the same in all.
        of_main: Parts of the main process alone: logs, the best weights.
        facts: Called for what the sidecar tells people.
        best_step: Called for the step whose checkpoint is to be kept besides the last few.
    """

    def __init__(
        self,
        folder: CheckpointFolder | None,
        group: ProcessGroup,
        shared: Mapping[str, Stateful],
        of_main: Mapping[str, Stateful],
        facts: Callable[[], Mapping[str, Any]] = dict,
        best_step: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.folder, self.group, self.shared, self.of_main = folder, group, shared, of_main
        self.facts, self.best_step = facts, best_step

    def save(self, step: int) -> None:
        """Writes a checkpoint; all processes call this at the same step."""
        if self.folder is None:
            return
        random_states = self.group.gather([random_state()])
        if not self.group.is_main:
            return
        state = {
            "shared": {name: part.state_dict() for name, part in self.shared.items()},
            "of_main": {name: part.state_dict() for name, part in self.of_main.items()},
            "random_states": random_states,
        }
        self.folder.write(step, state, {**self.facts(), "processes": self.group.n_processes}, self.best_step())

    def restore(self) -> bool:
        """Takes up the newest whole checkpoint; False where there is none. All processes call this together."""
        if self.folder is None:
            return False
        state = self.folder.read_newest() if self.group.is_main else None
        common = self.group.from_main(None if state is None else {k: state[k] for k in ("shared", "random_states")})
        if common is None:
            return False
        for name, part in self.shared.items():
            part.load_state_dict(common["shared"][name])
        if state is not None:
            for name, part in self.of_main.items():
                part.load_state_dict(state["of_main"][name])
        if len(common["random_states"]) == self.group.n_processes:  # else each process keeps its own, from the seed
            set_random_state(common["random_states"][self.group.rank])
        return True


def random_state() -> dict[str, Any]:
    """Returns the state of every random generator of this process, as tensors and plain values."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def set_random_state(state: dict[str, Any]) -> None:
    """Puts every random generator where `random_state` found it."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def _read(sidecar: Path) -> dict[str, Any]:
    path = sidecar.with_suffix(".pt")
    facts = read_json(sidecar)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise PosefoundryError(f"{sidecar}: expected a checkpoint of format {FORMAT}, got {str(facts)[:100]}.")
    try:
        if facts.get("sha256") != sha256_of_file(path):
            raise PosefoundryError(f"{path}: its SHA-256 does not match {sidecar.name}.")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise PosefoundryError(f"{path}: the checkpoint cannot be read: {error}.") from None
    return state


def _step_of(path: Path) -> int | None:
    """Returns the step that a name tells; None for a file of the user's."""
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdecimal() else None


def _drop(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        print(f"{path}: could not be removed: {error}.", file=sys.stderr)


def _room(folder: Path) -> str:
    """Tells how much is free, because torch says of a full disk no more than where in a file it happened."""
    with suppress(OSError):
        return f", where {shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free"
    return ""


def _flush_folder(path: Path) -> None:
    """Makes the names in a folder survive a power cut, as `fsync` does with a file's content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_others(folder: CheckpointFolder) -> list[str]:
    """Returns a sentence on each other training with checkpoints beside `folder`: why it is not gone on with."""
    sentences = []
    for other in sorted(folder.path.parent.glob("*")):
        sidecars = sorted(other.glob("step-*.json"))
        if other == folder.path or not sidecars:
            continue
        try:
            facts = json.loads(sidecars[-1].read_bytes())
            theirs, step = dict(facts["identity"]), int(facts["step"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        keys = sorted({*theirs, *folder.identity})
        different = [key for key in keys if theirs.get(key) != folder.identity.get(key)]
        sentences.append(f"{other} (step {step}) belongs to another training (different: {', '.join(different)}).")
    return sentences
