"""What resamples of a difference say: its confidence interval, how unlikely it is, and that for several at once."""

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np


def percentile_interval(resampled: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """Returns the interval between the outer percentiles of the resamples.

    In simulations of 1,000 sets (as in tests/evaluation/test_bootstrap.py) 95 % intervals held the true difference in
    93.0 to 95.0 % of sets of 150 to 300 images, and in 92.9 % of sets of 60. The bias-corrected and accelerated
    interval (BCa) held it less often throughout: 93.8 % where this one did in 94.2, 90.4 where this one did in 92.8.

    Args:
        resampled: (R,) differences; NaN where a resample had nobody to find.
        confidence: 0 to 1.

    Returns:
        Its ends; None without a resample that has a value.
    """
    known = resampled[np.isfinite(resampled)]
    if not known.size:
        return None
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def p_value_not_below(resampled: np.ndarray, bound: float) -> float:
    """Returns how compatible the resamples are with a true difference of `bound` or more: small is proof of less.

    The other side of the percentile interval: at most 2.5 % exactly where the 95 % interval ends below the bound.
    """
    known = resampled[np.isfinite(resampled)]
    return float((np.count_nonzero(known >= bound) + 1) / (known.size + 1))


def p_value_not_above(resampled: np.ndarray, bound: float) -> float:
    """Returns how compatible the resamples are with a true difference of `bound` or less: small is proof of more."""
    return p_value_not_below(-resampled, -bound)


def p_value_two_sided(resampled: np.ndarray) -> float:
    """Returns how compatible the resamples are with no difference at all."""
    return min(1.0, 2 * min(p_value_not_below(resampled, 0.0), p_value_not_above(resampled, 0.0)))


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


def normal_quantile(probability: float) -> float:
    """Returns the value that a standard normal variable stays below with this probability."""
    return NormalDist().inv_cdf(probability)
