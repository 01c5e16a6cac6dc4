"""The gate: may this candidate follow the model in production? Rules in, a decision with its reasons out."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Two sums of the same numbers in another order differ by less; no decision should hang on that.
TOLERANCE = 1e-9

# How a metric is called when it is read aloud.
METRIC_NAMES = {
    "oks_ap": "Pose accuracy (OKS AP)",
    "oks_ap50": "Pose accuracy at a lenient match (OKS AP50)",
    "oks_ap75": "Pose accuracy at a strict match (OKS AP75)",
    "oks_ap_m": "Pose accuracy on medium-sized persons (OKS AP-M)",
    "oks_ap_l": "Pose accuracy on large persons (OKS AP-L)",
    "oks_ar": "Pose recall (OKS AR)",
    "oks_ar50": "Pose recall at a lenient match (OKS AR50)",
    "oks_ar75": "Pose recall at a strict match (OKS AR75)",
    "oks_ar_m": "Pose recall on medium-sized persons (OKS AR-M)",
    "oks_ar_l": "Pose recall on large persons (OKS AR-L)",
    "box_ap": "Person detection (box AP)",
    "box_ap50": "Person detection at a lenient match (box AP50)",
    "box_ap75": "Person detection at a strict match (box AP75)",
    "box_ap_s": "Person detection of small persons (box AP-S)",
    "box_ap_m": "Person detection of medium-sized persons (box AP-M)",
    "box_ap_l": "Person detection of large persons (box AP-L)",
}


@dataclass(frozen=True)
class Rule:
    """One rule and how the candidate fared.

    Attributes:
        name: What the rule is called in tables and messages.
        metric: The metric it looks at; None where it looks at something else.
        value: The candidate's value; None where there is none.
        bound: What the value must reach; None where there is nothing to reach.
        passed: Whether the rule holds.
        sentence: Outcome and reason, to be read aloud.
    """

    name: str
    metric: str | None
    value: float | None
    bound: float | None
    passed: bool
    sentence: str


@dataclass(frozen=True)
class Production:
    """The model in production as it did on the candidate's test images.

    Attributes:
        version: Its version in the registry.
        metrics: Its metrics; empty if it could not be judged at all.
        passport: On what and how they were measured.
        obstacle: Why they don't compare with the candidate's, a sentence; None if they do.
    """

    version: str
    metrics: Mapping[str, Any]
    passport: Mapping[str, Any]
    obstacle: str | None = None


@dataclass(frozen=True)
class Decision:
    """The gate's answer: passed only if every rule did."""

    passed: bool
    verdict: str
    rules: tuple[Rule, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain types for JSON."""
        return {"passed": self.passed, "verdict": self.verdict, "rules": [asdict(rule) for rule in self.rules]}


def decide(
    candidate: Mapping[str, Any],
    production: Production | None,
    *,
    floors: Mapping[str, float],
    max_regression: Mapping[str, float],
) -> Decision:
    """Applies all rules, also after one has failed, so that one run tells everything that is wrong.

    Args:
        candidate: The candidate's metrics.
        production: The model in production; None if there is none yet.
        floors: For each metric the least value that is accepted.
        max_regression: For each metric how far the candidate may fall below the model in production.
    """
    rules = [_floor(metric, candidate, bound) for metric, bound in floors.items()]
    if max_regression:
        rules += _regressions(candidate, production, max_regression)
    if not rules:
        rules = [
            Rule("some rule is set", None, None, None, False,
                 "Neither gate.floors nor gate.max_regression sets a rule, so nothing is proven."),
        ]  # fmt: skip
    failed = [rule for rule in rules if not rule.passed]
    return Decision(passed=not failed, verdict=_verdict(rules, failed), rules=tuple(rules))


def _floor(metric: str, candidate: Mapping[str, Any], bound: float) -> Rule:
    name = f"{metric} reaches its floor"
    value, fault = _number(candidate, metric, "the candidate")
    if value is None:
        return Rule(name, metric, None, bound, False, fault)
    passed = value >= bound - TOLERANCE
    link, digits = "and" if passed else "but", _digits(value, bound)
    sentence = f"{_title(metric)} is {value:.{digits}f}, {link} at least {bound:.{digits}f} is required."
    return Rule(name, metric, value, bound, passed, sentence)


def _regressions(
    candidate: Mapping[str, Any], production: Production | None, margins: Mapping[str, float]
) -> list[Rule]:
    if production is None:
        sentence = "No model is in production yet, so there is none to fall behind."
        return [Rule("first model", None, None, None, True, sentence)]
    name = "comparable with production"
    if production.obstacle is not None:
        sentence = f"Version {production.version} in production could not be compared: {production.obstacle}"
        return [Rule(name, None, None, None, False, sentence)]
    sentence = f"Version {production.version} in production was judged on the same images in the same way."
    comparable = Rule(name, None, None, None, True, sentence)
    return [comparable] + [
        _regression(metric, candidate, production.metrics, production.version, margin)
        for metric, margin in margins.items()
    ]


def _regression(
    metric: str, candidate: Mapping[str, Any], production: Mapping[str, Any], version: str, margin: float
) -> Rule:
    name = f"{metric} keeps up with production"
    value, fault = _number(candidate, metric, "the candidate")
    reference, reference_fault = _number(production, metric, f"version {version} in production")
    if value is None or reference is None:
        return Rule(name, metric, value, None, False, fault or reference_fault)
    bound = reference - margin
    passed = value >= bound - TOLERANCE
    change = value - reference
    digits = max(_digits(value, reference), _digits(-change, margin))
    comparison = f"{abs(change):.{digits}f} {'above' if change > 0 else 'below'} the {reference:.{digits}f} of"
    if abs(change) <= TOLERANCE:
        digits, comparison = 3, "equal to"
    sentence = f"{_title(metric)} is {value:.{digits}f}, {comparison} version {version} in production"
    if not passed:
        sentence += f", but {f'at most {margin:.{digits}f}' if margin else 'nothing'} below is allowed"
    return Rule(name, metric, value, bound, passed, f"{sentence}.")


def _number(metrics: Mapping[str, Any], metric: str, whose: str) -> tuple[float | None, str]:
    """Returns a metric's value, or None and the sentence that says why there is no value to judge by."""
    if metric not in metrics:
        near = difflib.get_close_matches(metric, metrics, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return None, f"There is no metric {metric} of {whose}, so it proves nothing.{hint}"
    value = metrics[metric]
    if value is None:
        return None, f"{_title(metric)} of {whose} has no value on these test images, so it proves nothing."
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None, f"{_title(metric)} of {whose} is not a number ({value}), so it proves nothing."
    return float(value), ""


def _digits(one: float, other: float) -> int:
    """Returns three decimals, or as many as it takes to see that two numbers differ."""
    return next((n for n in range(3, 9) if f"{one:.{n}f}" != f"{other:.{n}f}"), 3)


def _title(metric: str) -> str:
    return METRIC_NAMES.get(metric, f"The metric {metric}")


def _verdict(rules: list[Rule], failed: list[Rule]) -> str:
    if not failed:
        return f"Passed: all {len(rules)} rules hold." if len(rules) > 1 else f"Passed: {rules[0].sentence}"
    if len(failed) == 1:
        return f"Rejected: {failed[0].sentence}"
    return f"Rejected: {len(failed)} of {len(rules)} rules fail ({'; '.join(rule.name for rule in failed)})."
