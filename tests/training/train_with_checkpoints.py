"""Run by tests in processes of their own: a training that keeps a checkpoint every second step.

train_with_checkpoints.py dataset.yaml val.json folder doomed_rank; settings are in folder/settings.json

The process of the doomed rank (-1: none) is killed in its fourth step, once. The host of rank 0 writes: weights into
`folder/weights`, checkpoints into `folder/checkpoints`.
"""

import itertools
import os
import signal
import sys
from pathlib import Path

from posefoundry.config import Train
from posefoundry.processes import die_with_parent
from posefoundry.training.checkpoint import CheckpointFolder
from posefoundry.training.distributed import join_process_group
from posefoundry.training.session import train_model


def main() -> None:
    die_with_parent()
    dataset_yaml, val_annotations, folder = (Path(argument) for argument in sys.argv[1:4])
    settings = Train.model_validate_json((folder / "settings.json").read_text())
    with join_process_group("cpu", 60) as group:
        killed = folder / f"killed_{group.rank}"
        steps = itertools.count()

        def die_in_fourth_step() -> bool:
            if next(steps) == 3 and group.rank == int(sys.argv[4]) and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return False

        train_model(
            settings,
            dataset_yaml=dataset_yaml,
            val_annotations=val_annotations,
            weights_folder=folder / "weights",
            group=group,
            checkpoints=CheckpointFolder(folder / "checkpoints", settings.keep_checkpoints),
            should_stop=die_in_fourth_step,
        )


if __name__ == "__main__":
    main()
