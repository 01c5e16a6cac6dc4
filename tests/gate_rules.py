"""Rules of the gate, said briefly, and the evidence of models that were never trained."""

from statistics import NormalDist

import numpy as np

from posefoundry.config import Floor, Gate, Improvement, NoRegression
from posefoundry.evaluation.bootstrap import Resampled
from posefoundry.evaluation.rules import Evidence, Production

NAN = float("nan")
REJECT, DEMAND = "reject_on_proven_regression", "demand_non_inferiority"
NOBODY = Resampled(np.full(10, NAN), np.full(10, NAN), np.full((1000, 10), NAN), 0, 0)
SAME = Resampled(np.full(10, 0.5), np.full(10, 0.5), np.zeros((10_000, 10)), 800, 400)


def gate(*rules, mode=REJECT, **settings) -> Gate:
    return Gate(mode=mode, rules=rules, **settings)


def at_least(bound, metric="oks_ap", slice_name="all") -> Floor:
    return Floor(rule="floor", metric=metric, slice=slice_name, at_least=bound)


def no_loss(margin, *slices) -> NoRegression:
    return NoRegression(rule="no_regression", margin=margin, slices=slices or ("all",))


def gain(margin=0.0, slice_name="all") -> Improvement:
    return Improvement(rule="improvement", margin=margin, slice=slice_name)


def resampled(difference, spread, *, production=0.5, images=400) -> Resampled:
    """A difference known to `spread`, by 10,000 resamples that are exactly normal."""
    draws = [NormalDist(difference, spread).inv_cdf((i + 0.5) / 10_000) for i in range(10_000)]
    differences = np.repeat(np.array(draws)[:, None], 10, axis=1)
    return Resampled(np.full(10, production + difference), np.full(10, production), differences, 2 * images, images)


def compared(**slices) -> Evidence:
    """A candidate beside version 3; `all_`, and others by names whose __ stands for =."""
    named = {name.replace("all_", "all").replace("__", "="): value for name, value in slices.items()}
    return Evidence({"oks_ap": 0.5}, production=Production("3", {"oks_ap": 0.5}, {}, resampled=named))
