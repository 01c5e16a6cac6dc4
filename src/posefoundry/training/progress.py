"""Progress of a training, for those who watch."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from posefoundry.training.observer import Observer

# Where there is no terminal: long enough for a log to stay readable, short enough to see that the training goes on.
LINE_EVERY_S = 60.0


@contextmanager
def training_progress() -> Iterator[Observer]:
    """Yields an observer that prints a line an epoch, and shows a bar; without a terminal a line a minute instead."""
    progress = _Progress()
    with progress.bar:
        yield progress


class _Progress(Observer):
    """A bar of all steps with the latest figures, or now and then a line of them; a line an epoch."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console()
        self.bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("train", total=None, figures="")
        self.last_line_at_s = time.monotonic()

    def step_done(self, step: int, n_steps: int, values: dict[str, float]) -> None:
        figures = f"loss {values['loss_total']:.2f}"
        self.bar.update(self.task, total=n_steps, completed=step + 1, figures=figures)
        if not self.console.is_terminal and time.monotonic() - self.last_line_at_s >= LINE_EVERY_S:
            left_s = self.bar.tasks[0].time_remaining
            left = "" if left_s is None else f"  {timedelta(seconds=left_s)} left"
            self._print(f"step {step + 1:,} of {n_steps:,}  {figures}{left}")

    def epoch_done(self, epoch: int, values: dict[str, float | None]) -> None:
        shown = [f"loss {values['loss_total']:.2f}", f"pose {values['loss_pose']:.2f}"]
        shown += [f"{values['images_per_second']:.0f} images/s"]
        if "val_oks_ap" in values:
            judged = {
                "val OKS AP": values["val_oks_ap"],
                "AP50": values["val_oks_ap50"],
                "box AP": values["val_box_ap"],
            }
            shown += [f"{name} {'n/a' if value is None else f'{value:.3f}'}" for name, value in judged.items()]
        self._print(f"epoch {epoch:3d}  " + "  ".join(shown))

    def _print(self, line: str) -> None:
        self.last_line_at_s = time.monotonic()
        self.console.print(line, soft_wrap=True)
