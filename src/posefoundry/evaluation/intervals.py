"""What resamples of a difference say: its confidence interval, how unlikely it is, and that for several at once.

The outer percentiles of the resamples lie too near each other where images are few: a resample varies by a factor of
sqrt((n - 1) / n) less than the images themselves, and its percentiles are those of a normal distribution where a t
distribution is due. Both are made up for by going further out (the expanded percentile interval: Hesterberg, What
Teachers Should Know about the Bootstrap, The American Statistician 69, 2015). tests/evaluation/test_bootstrap.py
simulates 1,000 sets of 20 and of 150 images and asks that the 95 % intervals hold the true difference in 93 to 97 %.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy import special

# Differences of AP below this are the rounding of sums, and no evidence that two models differ.
ROUNDING = 1e-6


def confidence_interval(resampled: np.ndarray, confidence: float, images: int) -> tuple[float, float] | None:
    """Returns the expanded percentile interval.

    Args:
        resampled: (R,) differences; NaN where a resample had nobody to find.
        confidence: 0 to 1.
        images: How many images they rest on.

    Returns:
        Its ends; None without a resample that has a value, or with fewer than two images.
    """
    known = resampled[np.isfinite(resampled)]
    if not known.size or images < 2:
        return None
    tail = resampled_tail((1 - confidence) / 2, images)
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def p_value_not_below(resampled: np.ndarray, bound: float, images: int) -> float:
    """Returns how compatible the resamples are with a true difference of `bound` or more: small is proof of less.

    The other side of the interval: at most 2.5 % exactly where the 95 % interval ends below the bound.
    """
    known = resampled[np.isfinite(resampled)]
    if images < 2:
        return 1.0
    return _tail_of_images((np.count_nonzero(known >= bound - ROUNDING) + 1) / (known.size + 1), images)


def p_value_not_above(resampled: np.ndarray, bound: float, images: int) -> float:
    """Returns how compatible the resamples are with a true difference of `bound` or less: small is proof of more."""
    return p_value_not_below(-resampled, -bound, images)


def p_value_two_sided(resampled: np.ndarray, images: int) -> float:
    """Returns how compatible the resamples are with no difference at all."""
    return min(1.0, 2 * min(test(resampled, 0.0, images) for test in (p_value_not_below, p_value_not_above)))


def resamples_needed(level: float, images: int) -> int:
    """Returns how many resamples it takes to prove anything at a one-sided level on so many images."""
    return math.ceil(1 / resampled_tail(level, images) - 1e-6)


def resampled_tail(level: float, images: int) -> float:
    """Returns which share of the resamples lies beyond the end that the true difference is beyond with `level`."""
    return float(special.ndtr(special.stdtrit(images - 1, level) * math.sqrt(images / (images - 1))))


def _tail_of_images(share: float, images: int) -> float:
    """The inverse of `resampled_tail`."""
    return float(special.stdtr(images - 1, special.ndtri(share) * math.sqrt((images - 1) / images)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Corrects p values for having looked in several places (Holm, Scandinavian Journal of Statistics 6, 1979).

    The chance that any of the corrected values falls below a level although nothing differs is at most that level.
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - i)))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}
