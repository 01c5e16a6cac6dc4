"""What happens when steps cannot count: a few are left out, many in a row lead back to a checkpoint, then to an end."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from posefoundry.errors import PosefoundryError

SKIPPED_IN_A_ROW = 5
MAX_RETURNS = 2
LEARNING_RATE_FACTOR = 0.5


class DivergedError(PosefoundryError):
    """Steps in a row had a loss or a gradient that is not finite, or exploded.

    Attributes:
        step: The first of them.
        values: Its numbers: loss terms, gradient norm.
    """

    def __init__(self, step: int, values: Mapping[str, float], n_skipped: int) -> None:
        self.step, self.values = step, values
        broken = [
            f"the loss term {name.removeprefix('loss_')}"
            for name, value in values.items()
            if name.startswith("loss_") and name != "loss_total" and not math.isfinite(value)
        ]
        norm = values["gradient_norm"]
        if not math.isfinite(norm):
            broken.append("the gradient")
        what = f"{' and '.join(broken)} is not finite" if broken else f"the gradient exploded to a norm of {norm:.3g}"
        super().__init__(f"Training diverged in step {step}: {what}; {n_skipped} steps in a row were skipped.")


@dataclass
class Rescue:
    """Counts steps that were left out, and the returns to a checkpoint that they led to.

    Attributes:
        learning_rate_scale: What the schedule's learning rate is multiplied by.
        returns: How often the training went back.
        in_a_row: Steps left out since the last good one.
        first: Number and values of the first of these.
    """

    learning_rate_scale: float = 1.0
    returns: int = 0
    in_a_row: int = 0
    first: tuple[int, Mapping[str, float]] | None = field(default=None, repr=False)

    def watch(self, step: int, values: Mapping[str, float]) -> None:
        """Hears of each step, in order.

        Raises:
            DivergedError: Too many in a row were left out.
        """
        if not values["skipped"]:
            self.in_a_row, self.first = 0, None
            return
        self.first = self.first or (step, values)
        self.in_a_row += 1
        if self.in_a_row >= SKIPPED_IN_A_ROW:
            raise DivergedError(*self.first, n_skipped=self.in_a_row)

    def next(self) -> "Rescue | None":
        """Returns how to go on from a checkpoint, or None where that has been tried often enough."""
        if self.returns == MAX_RETURNS:
            return None
        return Rescue(self.learning_rate_scale * LEARNING_RATE_FACTOR, self.returns + 1)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        return asdict(self)
