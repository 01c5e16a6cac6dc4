"""Progress of a training, for those who watch."""

from collections.abc import Iterator
from contextlib import contextmanager

from posefoundry.training.observer import Observer


@contextmanager
def training_progress() -> Iterator[Observer]:
    """Yields an observer that shows a bar and prints a line an epoch; the bar only on a terminal."""
    progress = _Progress()
    with progress.bar:
        yield progress


class _Progress(Observer):
    """A bar of all steps with the latest figures; lines an epoch where there is no terminal."""

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

    def step_done(self, step: int, n_steps: int, values: dict[str, float]) -> None:
        figures = f"loss {values['loss_total']:.2f}"
        self.bar.update(self.task, total=n_steps, completed=step + 1, figures=figures)

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
        self.console.print(f"epoch {epoch:3d}  " + "  ".join(shown), soft_wrap=True)
