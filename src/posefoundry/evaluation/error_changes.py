"""Which kinds of error a candidate makes more of than the model in production: what a worse AP comes from."""

from collections.abc import Mapping, Sequence
from typing import Any

from posefoundry.evaluation.rules import WHOLE, Outcome
from posefoundry.evaluation.wording import ERROR_PLURALS

LEAST_RISE = 0.005  # of the AP lost to a kind of error; less is told of no candidate
KINDS_TOLD = 2


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
    lost = {kind: (production["ap_lost"].get(kind), now) for kind, now in candidate["ap_lost"].items()}
    risen = [
        (now - before, kind) for kind, (before, now) in lost.items() if now is not None and before is not None
        and now - before >= LEAST_RISE
    ]  # fmt: skip
    told = [kind for _, kind in sorted(risen, reverse=True)[:KINDS_TOLD]]
    if not told:
        return None
    parts = [
        f"to {ERROR_PLURALS.get(kind, kind)} rose from {lost[kind][0]:.3f} to {lost[kind][1]:.3f}" for kind in told
    ]
    return f"AP lost {', and '.join(parts)}."


def _is_worse(rules: Sequence[Outcome], differences: Sequence[Mapping[str, Any]]) -> bool:
    if any(row["proven"] == "worse" or (row["slice"] == WHOLE and row["difference"] < 0) for row in differences):
        return True
    return any(not rule.passed and rule.difference is not None and rule.difference < 0 for rule in rules)
