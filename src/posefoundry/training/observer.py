"""Who listens to a training: logs, progress bars, MLflow. The loop knows none of them."""

import csv
import io
import os
import sys
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posefoundry.files import write_bytes_atomic, write_json_atomic, write_text_atomic


class Observer:
    """Hears of each step and epoch in the main process; every method may be left as it is."""

    def step_done(self, step: int, n_steps: int, values: dict[str, float]) -> None:
        """Called once a step, in order, some steps late: losses, learning rate, gradient norm."""

    def epoch_done(self, epoch: int, values: dict[str, float | None]) -> None:
        """Called after each epoch (counted from 1) with means of the epoch and, where there was one, its validation."""

    def picture(self, name: str, image_bgr: np.ndarray) -> None:
        """Called with pictures worth keeping: a training batch, predictions on validation images."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint is to keep of it, as tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Called when the training goes on from a checkpoint, before anything else."""


class FileLog(Observer):
    """Keeps `results.csv` (a row an epoch), `steps.csv` (a row a step), `results.json` and `samples/*.jpg`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epochs: list[dict[str, float | None]] = []
        # A training may have a million steps: their numbers lie in one array, row after row.
        self._step_columns: list[str] = ["step"]
        self._steps = array("d")
        self._n_written = 0  # of these numbers, in steps.csv
        self._has_told_of_pictures = False

    def step_done(self, step: int, n_steps: int, values: dict[str, float]) -> None:
        """Remembers a row of steps.csv."""
        self._step_columns = ["step", *values]
        self._steps.extend((step, *values.values()))

    def epoch_done(self, epoch: int, values: dict[str, float | None]) -> None:
        """Writes all three files; where the disk refuses, the next epoch will."""
        self.epochs.append({"epoch": epoch, **values})
        try:
            write_text_atomic(self.folder / "results.csv", _csv(self.epochs))
            self._write_steps(self.folder / "steps.csv")
            write_json_atomic(self.folder / "results.json", {"epochs": self.epochs})
        except OSError as error:
            self._n_written = 0
            print(f"{self.folder}: the log of epoch {epoch} could not be written: {error}.", file=sys.stderr)

    def _write_steps(self, path: Path) -> None:
        """Adds the rows that are new; where what lies there may not be this training's, writes the file anew."""
        is_own = self._n_written > 0 and path.is_file()
        written = path if is_own else path.with_name(f".{path.name}.partial")
        with written.open("a" if is_own else "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            if not is_own:
                writer.writerow(self._step_columns)
            width = len(self._step_columns)
            for start in range(self._n_written if is_own else 0, len(self._steps), width):
                step, *values = self._steps[start : start + width]
                writer.writerow((int(step), *(f"{value:.6g}" for value in values)))
            stream.flush()
            os.fsync(stream.fileno())
        written.replace(path)
        self._n_written = len(self._steps)

    def state_dict(self) -> dict[str, Any]:
        """Returns all rows so far."""
        # A copy: while a tensor looks at the array, the array cannot grow.
        steps = torch.frombuffer(self._steps, dtype=torch.float64).clone() if self._steps else torch.zeros(0).double()
        shaped = steps.reshape(-1, len(self._step_columns))
        return {"epochs": list(self.epochs), "step_columns": self._step_columns, "steps": shaped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after these rows."""
        self.epochs, self._step_columns = list(state["epochs"]), state["step_columns"]
        self._steps = array("d", state["steps"].numpy().tobytes())
        self._n_written = 0

    def picture(self, name: str, image_bgr: np.ndarray) -> None:
        """Writes the picture as JPEG; where the disk refuses, says so of the first."""
        import cv2

        _, encoded = cv2.imencode(".jpg", image_bgr)
        try:  # not by OpenCV, which does not tell why it could not
            write_bytes_atomic(self.folder / "samples" / f"{name}.jpg", encoded.tobytes())
        except OSError as error:
            if not self._has_told_of_pictures:
                print(f"picture {name} not written: {error}. The training goes on.", file=sys.stderr)
            self._has_told_of_pictures = True


def _csv(rows: list[dict[str, float | None]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
    )
    return stream.getvalue()
