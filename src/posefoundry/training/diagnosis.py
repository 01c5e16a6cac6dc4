"""What is told of a training that diverged for good: which loss term, and which image files the step was made of."""

import math
import sys
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from posefoundry.files import write_json_atomic
from posefoundry.training.batch import Batch
from posefoundry.training.data import TrainingImages
from posefoundry.training.epoch_log import EpochLog
from posefoundry.training.rescue import DivergedError

MAX_NAMES = 16
FILE_NAME = "diverged.json"
ADVICE = "Lower train.learning_rate, lengthen train.warmup_epochs, or set train.precision: float32."


def diagnose(error: DivergedError, log: EpochLog, loader: DataLoader[Batch], folder: Path | None) -> str:
    """Returns the whole message; what is too long for it is written to `diverged.json` in the folder.

    Args:
        error: Names the step.
        log: Of the epoch under way.
        loader: Of the training; its batch sampler is left at the epoch of the step.
        folder: Where the checkpoints lie; None where there are none.
    """
    means = {name: total / log.n_good for name, total in log.sums.items()}
    told = {name: value for name, value in error.values.items() if name.startswith("loss_") or name == "gradient_norm"}
    numbers = ", ".join(
        f"{name.removeprefix('loss_')} {value:.4g} ({f'{means[name]:.4g}' if name in means else 'none'})"
        for name, value in told.items()
    )
    made_of = _files_of_step(loader, error.step)
    kept = _keep(folder, error, told, means, made_of)
    names = [Path(image).name for image in made_of]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return (
        f"{error} Loss terms and gradient norm of that step, and in brackets the means of the epoch's good steps: "
        f"{numbers}. Images of step {error.step}: {', '.join(names[:MAX_NAMES])}{more}. {kept}{ADVICE}"
    )


def _files_of_step(loader: DataLoader[Batch], step: int) -> dict[str, list[str]]:
    """Returns by image the files that its sample is made of, of all processes together."""
    sampler: Any = loader.batch_sampler
    images = loader.dataset
    assert isinstance(images, TrainingImages)
    sampler.epoch, number = divmod(step, len(loader))
    return {str(images.paths[item[1]]): [str(path) for path in images.sources(item)] for item in sampler.batch(number)}


def _keep(
    folder: Path | None,
    error: DivergedError,
    told: dict[str, float],
    means: dict[str, float],
    made_of: dict[str, list[str]],
) -> str:
    """Writes the file and returns a sentence on it."""
    if folder is None:
        return ""
    content = {
        "fault": str(error),
        "step": error.step,
        "values": {name: _plain(value) for name, value in told.items()},
        "means_of_epoch": {name: _plain(means[name]) for name in told if name in means},
        "images": [{"image": image, "made_of": files} for image, files in made_of.items()],
    }
    path = folder / FILE_NAME
    try:
        write_json_atomic(path, content)
    except OSError as refused:
        print(f"{path}: not written: {refused}.", file=sys.stderr)
        return ""
    n_files = len({file for files in made_of.values() for file in files})
    return f"{path} lists all {n_files} files that they are made of. "


def _plain(value: float) -> float | str:
    """JSON has no numbers that are not finite, and here they are the point."""
    return value if math.isfinite(value) else str(value)
