"""Who listens to a training: logs, progress bars, MLflow. The loop knows none of them."""

import csv
import io
from pathlib import Path

import numpy as np

from posefoundry.files import write_json_atomic, write_text_atomic


class Observer:
    """Hears of each step and epoch in the main process; every method may be left as it is."""

    def step_done(self, step: int, n_steps: int, values: dict[str, float]) -> None:
        """Called once a step, in order, some steps late: losses, learning rate, gradient norm."""

    def epoch_done(self, epoch: int, values: dict[str, float | None]) -> None:
        """Called after each epoch (counted from 1) with means of the epoch and, where there was one, its validation."""

    def picture(self, name: str, image_bgr: np.ndarray) -> None:
        """Called with pictures worth keeping: a training batch, predictions on validation images."""


class FileLog(Observer):
    """Keeps `results.csv` (a row an epoch), `steps.csv` (a row a step), `results.json` and `samples/*.jpg`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epochs: list[dict[str, float | None]] = []
        self.steps: list[dict[str, float | None]] = []

    def step_done(self, step: int, n_steps: int, values: dict[str, float]) -> None:
        """Remembers a row of steps.csv."""
        self.steps.append({"step": step, **values})

    def epoch_done(self, epoch: int, values: dict[str, float | None]) -> None:
        """Writes all three files anew."""
        self.epochs.append({"epoch": epoch, **values})
        write_text_atomic(self.folder / "results.csv", _csv(self.epochs))
        write_text_atomic(self.folder / "steps.csv", _csv(self.steps))
        write_json_atomic(self.folder / "results.json", {"epochs": self.epochs})

    def picture(self, name: str, image_bgr: np.ndarray) -> None:
        """Writes the picture as JPEG."""
        import cv2

        path = self.folder / "samples" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image_bgr)


def _csv(rows: list[dict[str, float | None]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
    )
    return stream.getvalue()
