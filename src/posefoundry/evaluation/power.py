"""What a number of test images can show: differences below a size are lost in the luck of which images they are."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from posefoundry.evaluation.intervals import normal_quantile

POWER = 0.8  # the usual meaning of "can be seen": in four of five cases


@dataclass(frozen=True)
class Power:
    """What the test images can show.

    Attributes:
        images: How many there are.
        smallest_visible_drop: The least true drop of AP, beyond any margin, that is proven in four of five cases.
        margin: The margin that is asked for; None where none is.
        images_needed: How many images would show a drop of the margin's size; None without a margin above 0.
        is_enough: Whether the margin is no smaller than what can be seen.
        sentence: All this, to be read aloud.
    """

    images: int
    smallest_visible_drop: float
    margin: float | None
    images_needed: int | None
    is_enough: bool
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Returns plain types for JSON."""
        return asdict(self)


def power_of(resampled: np.ndarray, *, images: int, confidence: float, margin: float | None) -> Power:
    """Computes what can be seen from how much a difference varies over resamples.

    The normal approximation: a drop d is proven when d / s exceeds the quantile of `confidence`, where s is the
    standard deviation of the difference, and in four of five cases when it exceeds it by the quantile of 0.8. s falls
    with the square root of the number of images.

    Args:
        resampled: (R,) resampled differences.
        images: How many images they rest on.
        confidence: Of the two-sided interval.
        margin: The margin that is asked for.
    """
    known = resampled[np.isfinite(resampled)]
    spread = float(known.std()) if known.size else math.nan
    drop = (normal_quantile((1 + confidence) / 2) + normal_quantile(POWER)) * spread
    sentence = (
        f"With {images:,} images a drop under {100 * drop:.1f} AP cannot be seen "
        f"({100 * confidence:g} % confidence, four cases in five)"
    )
    needed = math.ceil(images * (drop / margin) ** 2) if margin and math.isfinite(drop) else None
    is_enough = margin is None or drop <= margin
    if margin and not is_enough and needed:
        sentence += f"; to see the {100 * margin:.1f} AP of the margin takes about {_rounded_up(needed):,}"
    return Power(images, drop, margin, needed, is_enough, f"{sentence}.")


def _rounded_up(number: int) -> int:
    """Returns the number to two digits, since it is an estimate."""
    step = 10 ** max(0, len(str(number)) - 2)
    return int(math.ceil(number / step) * step)
