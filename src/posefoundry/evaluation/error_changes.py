"""Which kinds of error a candidate makes more of than the model in production: what a worse AP comes from."""

from collections.abc import Mapping, Sequence
from typing import Any

from posefoundry.evaluation.rules import Outcome
from posefoundry.evaluation.slices import ALL
from posefoundry.evaluation.wording import ERROR_PLURALS

LEAST_RISE = 0.005  # of the AP lost to a kind of error; less is told of no candidate
LEAST_SHARE = 0.5  # of the largest rise; less is not what it comes from


def error_changes(
    candidate: Mapping[str, Any],
    production: Mapping[str, Any] | None,
    rules: Sequence[Outcome],
    differences: Sequence[Mapping[str, Any]],
) -> str | None:
    """Returns which kinds of error cost more AP than in production, a sentence, where the candidate is worse.

    Args:
        candidate: What `diagnose` says of it.
        production: The same of the model in production, on the same images; None if there is none to compare with.
        rules: The gate's outcomes.
        differences: What `comparison.differences` says of the two.

    Returns:
        None where no kind's cost rose noticeably, or where the candidate is nowhere worse: not over all persons, not
        in a slice where that is proven, and by no rule that fails.
    """
    if production is None or not _is_worse(rules, differences):
        return None
    before, now = production["ap_lost"], candidate["ap_lost"]
    rises = {kind: lost - before[kind] for kind, lost in now.items() if lost is not None and before[kind] is not None}
    least = max(LEAST_RISE, LEAST_SHARE * max(rises.values(), default=0.0))
    told = sorted((kind for kind, rise in rises.items() if rise >= least), key=rises.__getitem__, reverse=True)
    if not told:
        return None
    first, *others = [(ERROR_PLURALS.get(kind, kind), f"from {before[kind]:.3f} to {now[kind]:.3f}") for kind in told]
    return f"AP lost to {first[0]} rose {first[1]}{''.join(f', to {kind} {change}' for kind, change in others)}."


def _is_worse(rules: Sequence[Outcome], differences: Sequence[Mapping[str, Any]]) -> bool:
    if any(row["proven"] == "worse" or (row["slice"] == ALL and row["difference"] < 0) for row in differences):
        return True
    return any(not rule.passed and rule.difference is not None and rule.difference < 0 for rule in rules)
