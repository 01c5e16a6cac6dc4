"""Why a decision is a no: the rules that fail, the worst first, and what to say of them in a headline."""

import re
from collections.abc import Sequence

from posefoundry.evaluation.rules import TOLERANCE, Outcome
from posefoundry.evaluation.slices import ALL
from posefoundry.evaluation.wording import digits_of, title, where

MAX_NAMED = 5  # rules in a list, of which one reads no more

NOTHING_TO_JUDGE = (
    "no rule finds anything to judge in the test images. Add one on all persons to the rules, such as "
    "{rule: floor, metric: oks_ap, at_least: 0.3}."
)

# What weighs most comes first: that nothing is known, that something was lost, that something is missing.
RANKS = {"no_regression": 1, "parity": 1, "floor": 2, "improvement": 3, "budget": 4, "data": 5}

# What is said of a metric whose rule fails.
FAILS = {
    "floor": "below its floor",
    "no_regression": "fell behind",
    "improvement": "not proven better",
    "parity": "unlike PyTorch's",
}


def failures(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Returns the rules that fail, the worst first.

    What cannot be judged comes first, then what was lost against the other model, the largest loss beyond its margin at
    the head, then floors, improvements, budgets and the data.
    """
    return sorted((outcome for outcome in outcomes if not outcome.passed), key=_weight)


def _weight(outcome: Outcome) -> tuple[int, float]:
    if outcome.kind in ("no_regression", "parity") and outcome.metric is None:
        return 0, 0.0  # no figure's rule: whether there is anything to compare
    if outcome.kind == "floor" and outcome.candidate is not None:
        beyond = outcome.candidate - (outcome.bound or 0.0)
    elif outcome.difference is None:
        beyond = float("inf")
    elif outcome.kind == "parity":
        beyond = (outcome.bound or 0.0) - abs(outcome.difference)
    else:
        beyond = outcome.difference + (outcome.margin or 0.0)
    return RANKS.get(outcome.kind, len(RANKS)), beyond


def cause(outcomes: Sequence[Outcome], *, version: str | None = None, must_prove: bool = False) -> str:
    """Returns the worst failure and how many others there are, as the end of a sentence.

    Args:
        outcomes: All rules' outcomes.
        version: The model in production.
        must_prove: Whether the candidate must prove that it lost nothing, rather than be proven to have lost.
    """
    failed = failures(outcomes)
    if not failed:
        return NOTHING_TO_JUDGE
    worst, n_others = failed[0], len(failed) - 1
    if worst.kind == "no_regression" and worst.difference is not None:
        said = _loss(worst, version, must_prove=must_prove)
    else:
        said = _first_sentence(worst).removesuffix(".")
    others = f"; {n_others} other {'rule fails' if n_others == 1 else 'rules fail'}" if n_others else ""
    return f"{said}{others}."


def _loss(outcome: Outcome, version: str | None, *, must_prove: bool) -> str:
    change, margin = outcome.difference or 0.0, outcome.margin or 0.0
    whom = "over all persons" if outcome.slice in (None, ALL) else where(outcome.slice).strip()
    metric = f"AP{str(outcome.metric).removeprefix('oks_ap')}"
    if abs(change) <= TOLERANCE:
        compared = f"equal to version {version}"
    else:
        side = "above" if change > 0 else "below"
        compared = f"{abs(change):.{digits_of(abs(change), 0.0)}f} {metric} {side} version {version}"
    if not must_prove:
        return f"{whom} it is {compared}, proven"
    loss = f"a loss over {margin:.3f}" if margin else "a loss"
    return f"{whom} it is {compared}, and {loss} is not ruled out"


def _first_sentence(outcome: Outcome) -> str:
    """Returns what a rule says, without advice, as it follows a colon."""
    first = re.split(r"(?<=[.!?])\s+(?=[A-Z])", outcome.sentence)[0]
    is_name = bool(outcome.artifact) and first.startswith(str(outcome.artifact))
    return first if is_name else first[:1].lower() + first[1:]


def list_of_failures(outcomes: Sequence[Outcome]) -> str:
    """Returns what fails, the worst first, each in a few words."""
    named = [_in_few_words(outcome) for outcome in failures(outcomes)]
    more = len(named) - MAX_NAMED
    return "; ".join(named[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _in_few_words(outcome: Outcome) -> str:
    whose = f"{outcome.artifact}: " if outcome.artifact else ""
    if outcome.kind == "data":
        return "the data checks"
    if outcome.metric is None:
        return f"{whose}cannot be judged" if outcome.artifact else "no comparison with production"
    if outcome.kind == "budget":
        return f"{whose}{'too large' if outcome.metric == 'size_mb' else 'too slow'}"
    figure = title(outcome.metric)
    figure = f"{figure[:1].lower()}{figure[1:]}{where(outcome.slice)}"
    if outcome.candidate is None or (outcome.kind == "no_regression" and outcome.difference is None):
        return f"{whose}{figure} has no value"
    return f"{whose}{figure} {FAILS.get(outcome.kind, 'fails')}"
