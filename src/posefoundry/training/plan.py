"""A training outside of the pipeline: what it is to do lies in its folder, for its processes and for a later run."""

import os
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError, told_in_a_message
from posefoundry.files import read_json, sole_use, write_json_atomic
from posefoundry.processes import die_with_starter, put_back_afterwards, stop_on_signals

if TYPE_CHECKING:
    from posefoundry.training.observer import Observer

PLAN = "training.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training is to do, once its arguments and data have been looked at.

    Attributes:
        folder: Of the results: `weights/`, the logs, and until the end the checkpoints and this plan.
        settings: Section `train` of the parameters.
        dataset_yaml: The YOLO pose dataset.
        val_annotations: COCO annotations of the val split.
        checkpoints: Name of their folder in `folder`.
        gpus: Numbers of the GPUs, of those that this program may see, one a process; none: as `settings.device` says.
        facts: Further plain values for the sidecars of the weights.
        verbose: Shows the progress.
    """

    folder: Path
    settings: Train
    dataset_yaml: Path
    val_annotations: Path
    checkpoints: str = "checkpoints"
    gpus: tuple[int, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    verbose: bool = True

    def write(self) -> None:
        """Keeps it in the folder."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        write_json_atomic(self.folder / PLAN, plain | {"settings": self.settings.model_dump(mode="json")})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads what a folder keeps.

        Raises:
            PosefoundryError: The file is not one of these.
        """
        kept = read_json(folder / PLAN)
        try:
            return cls(
                folder=folder,
                settings=Train.model_validate(kept["settings"]),
                dataset_yaml=Path(kept["dataset_yaml"]),
                val_annotations=Path(kept["val_annotations"]),
                checkpoints=kept["checkpoints"],
                gpus=tuple(kept["gpus"]),
                facts=kept["facts"],
                verbose=kept["verbose"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PosefoundryError(f"{folder / PLAN}: expected the plan of a training: {error}.") from None

    def carry_out(self) -> None:
        """Trains, or goes on from the last checkpoint; here, or in one process for each GPU or share of the cores.

        Raises:
            StoppedError: A signal asked for the end; a checkpoint is kept.
            PosefoundryError: The GPUs are not there, several hosts are asked for, or see `train_model`.
        """
        if self.settings.nodes > 1:
            raise PosefoundryError(
                f"train.nodes: expected 1, got {self.settings.nodes}: only the pipeline trains on several hosts; "
                "docs/training.md tells how."
            )
        from posefoundry.training.checkpoint import CheckpointFolder

        with sole_use(self.folder / ".lock", patience_s=0):
            self.write()
            if self.settings.processes > 1 or self.gpus not in ((), (0,)):
                self._start_processes()
            else:
                self.train()
            # Not before all processes have ended: until then one may be lost, and all begin again.
            CheckpointFolder(self.folder / self.checkpoints, self.settings.keep_checkpoints).clear()
            (self.folder / PLAN).unlink(missing_ok=True)

    def _start_processes(self) -> None:
        from posefoundry.training.launch import run_processes

        with put_back_afterwards():
            if self.gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = _visible(self.gpus)
            run_processes([sys.executable, "-m", "posefoundry.training.plan", str(self.folder)], self.settings)

    def train(self) -> None:
        """Trains in this process, alone or as one of several."""
        from posefoundry.training.batch_size import with_batch_so_far, with_batch_that_fits
        from posefoundry.training.checkpoint import CheckpointFolder
        from posefoundry.training.distributed import join_process_group, watched
        from posefoundry.training.identity import identity_on_all_hosts
        from posefoundry.training.observer import FileLog
        from posefoundry.training.progress import training_progress
        from posefoundry.training.session import train_model

        settings = self.settings
        data = {"dataset_yaml": self.dataset_yaml, "val_annotations": self.val_annotations}
        with ExitStack() as stack:
            should_stop = stack.enter_context(stop_on_signals()) if _hears_signals() else lambda: False
            group = stack.enter_context(join_process_group(settings.device, settings.stall_timeout_s))
            observers: list[Observer] = [FileLog(self.folder)]
            if self.verbose and group.is_main:
                observers.append(stack.enter_context(training_progress()))
            with watched(group, settings.stall_timeout_s):
                identity = identity_on_all_hosts(settings, group, **data)
                kept = CheckpointFolder(self.folder / self.checkpoints, settings.keep_checkpoints, identity)
                settings = with_batch_that_fits(with_batch_so_far(settings, kept, group), group, self.dataset_yaml)
                train_model(
                    settings,
                    **data,
                    weights_folder=self.folder / "weights",
                    group=group,
                    observers=observers,
                    extra=self.facts,
                    checkpoints=kept,
                    should_stop=should_stop,
                )


def _visible(gpus: tuple[int, ...]) -> str:
    """Returns the value of CUDA_VISIBLE_DEVICES for the GPUs of these numbers, of those that are visible now.

    Raises:
        PosefoundryError: There are fewer.
    """
    import torch

    from posefoundry.training.distributed import require_gpu

    require_gpu()
    n_here = torch.cuda.device_count()
    if max(gpus) >= n_here:
        raise PosefoundryError(
            f"device: expected GPUs that this program sees, numbered from 0 to {n_here - 1}, got "
            f"{', '.join(map(str, gpus))}."
        )
    now = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = now.split(",") if now else [str(number) for number in range(n_here)]
    return ",".join(names[number].strip() for number in gpus)


def _hears_signals() -> bool:
    """Python tells of signals in the main thread alone."""
    return threading.current_thread() is threading.main_thread()


if __name__ == "__main__":
    die_with_starter()
    with told_in_a_message("train"):
        Plan.read(Path(sys.argv[1])).train()
