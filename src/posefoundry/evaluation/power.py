"""What a number of test images can show: differences below a size are lost in the luck of which images they are."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special

from posefoundry.evaluation.intervals import ROUNDING, resampled_tail
from posefoundry.evaluation.wording import where

POWER = 0.8  # the usual meaning of "can be seen": in four of five cases


@dataclass(frozen=True)
class Asked:
    """A figure of a slice: the least drop of it that can be seen, and the margin that is asked for, if any."""

    slice_name: str
    metric: str
    visible_drop: float
    margin: float | None


@dataclass(frozen=True)
class Power:
    """What the test images can show.

    Attributes:
        images: How many there are.
        metric: Of which figure.
        smallest_visible_drop: The least true drop of it, beyond any margin, that is proven in four of five cases.
        margin: The margin that is asked for; None where none is.
        images_needed: How many images would show a drop of the margin's size; None without a margin above 0.
        is_enough: Whether the margin is no smaller than what can be seen.
        blind_slices: In which other slices that the rules name the images are too few for the margin.
        sentence: All this, to be read aloud.
    """

    images: int
    metric: str
    smallest_visible_drop: float
    margin: float | None
    images_needed: int | None
    is_enough: bool
    blind_slices: tuple[str, ...]
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Returns plain types for JSON."""
        return asdict(self)


def visible_drop(resampled: np.ndarray, images: int, confidence: float, *, tests: int = 1) -> float | None:
    """Returns the least true drop that is proven in four of five cases.

    The normal approximation: a drop d is proven when d / s exceeds the quantile of the interval's end, where s is the
    standard deviation of the difference, and in four of five cases when it exceeds it by the quantile of 0.8.

    Args:
        resampled: (R,) resampled differences.
        images: How many images they rest on.
        confidence: Of the two-sided interval.
        tests: In how many places one looks; the drop must stand out among all of them.

    Returns:
        None where nothing is known: two models that found the same everywhere don't tell how much luck there is.
    """
    known = resampled[np.isfinite(resampled)]
    if images < 2 or not known.size or (spread := float(known.std())) < ROUNDING:
        return None
    tail = resampled_tail((1 - confidence) / 2 / max(1, tests), images)
    return float((special.ndtri(POWER) - special.ndtri(tail)) * spread)


def power_of(
    asked: Asked, *, images: int, confidence: float, tests: int, must_prove: bool, of_slices: Sequence[Asked] = ()
) -> Power:
    """Puts what can be seen beside what is asked for.

    Args:
        asked: What can be seen of all persons, and which margin is asked for there.
        images: How many test images there are. The drop falls with the square root of their number.
        confidence: Of the two-sided interval.
        tests: In how many slices one looks.
        must_prove: Whether the candidate must prove that it lost no more than the margin.
        of_slices: The same of the slices that the rules name.
    """
    drop, margin = asked.visible_drop, asked.margin
    among = f", among {tests} slices" if tests > 1 else ""
    sentence = (
        f"With {images:,} image{'' if images == 1 else 's'} a drop under {_figure(drop, asked.metric)} cannot be seen "
        f"({100 * confidence:g} % confidence, four cases in five{among})"
    )
    needed = math.ceil(images * (drop / margin) ** 2) if margin else None
    is_enough = margin is None or drop <= margin
    if margin and needed and not is_enough:
        sentence += f"; to see the {margin:.3f} of the margin takes about {_rounded_up(needed):,}"
    sentence += "."
    if margin and not is_enough and must_prove:
        sentence += " So a candidate that is just as good will often fail to prove it."
    elif margin and not is_enough:
        sentence += f" So a loss is as surely rejected only from {_figure(margin + drop, asked.metric)} on."
    blind = [entry for entry in of_slices if entry.margin and entry.visible_drop > entry.margin]
    if blind:
        worst = max(blind, key=lambda entry: entry.visible_drop)
        sentence += (
            f" In {len(blind)} of {len(of_slices)} slices the images are too few for the margin, most of all"
            f"{where(worst.slice_name)}: there a drop under {_figure(worst.visible_drop, worst.metric)} cannot be seen."
        )
    return Power(
        images, asked.metric, drop, margin, needed, is_enough, tuple(entry.slice_name for entry in blind), sentence
    )


def _figure(drop: float, metric: str) -> str:
    return f"{drop:.3f} AP{metric.removeprefix('oks_ap')}"


def _rounded_up(number: int) -> int:
    """Returns the number to two digits, since it is an estimate."""
    step = 10 ** max(0, len(str(number)) - 2)
    return int(math.ceil(number / step) * step)
