"""The rules of both gates, one by one: settings and evidence in, outcomes with their reasons out."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from posefoundry.config import DataChecks, Floor, Gate, Improvement, NoRegression
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.bootstrap import Resampled
from posefoundry.evaluation.intervals import (
    confidence_interval,
    holm,
    p_value_not_above,
    p_value_not_below,
    resamples_needed,
)
from posefoundry.evaluation.power import visible_drop
from posefoundry.evaluation.slices import ALL
from posefoundry.evaluation.wording import digits_of, interval_in_words, title, where

# Two sums of the same numbers in another order differ by less; no decision should hang on that.
TOLERANCE = 1e-9

# In fewer images the resamples are too few different ones for their percentiles to mean anything. At 20, the 95 %
# interval still holds the truth in 93 to 97 % of the simulated sets of tests/evaluation/test_bootstrap.py.
MIN_IMAGES = 20

Test = Callable[[np.ndarray, float, int], float]


@dataclass(frozen=True)
class Outcome:
    """One rule and how the candidate fared; None where the rule has no such thing.

    Attributes:
        name: What the rule is called in tables and messages.
        kind: floor, no_regression, improvement, data, parity or budget.
        passed: Whether the rule holds.
        sentence: Outcome and reason, to be read aloud.
        metric: The metric it looks at.
        slice: The slice it looks at.
        artifact: The file it looks at.
        candidate: The candidate's value.
        production: The value it is compared with: production's, or for parity the PyTorch model's.
        bound: What the candidate's value, or its distance, must reach or keep within.
        difference: Candidate less production.
        interval: Confidence interval of the difference.
        p_value: How compatible the images are with the claim not being true; see `_no_regressions`.
        p_value_holm: The same, corrected for the number of slices.
        margin: What may be lost, or must be won.
        visible_drop: The least loss beyond the margin that these images would prove in four cases of five.
    """

    name: str
    kind: str
    passed: bool
    sentence: str
    metric: str | None = None
    slice: str | None = None
    artifact: str | None = None
    candidate: float | None = None
    production: float | None = None
    bound: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    p_value_holm: float | None = None
    margin: float | None = None
    visible_drop: float | None = None


@dataclass(frozen=True)
class Production:
    """The model in production as it did on the candidate's test images.

    Attributes:
        version: Its version in the registry.
        metrics: Its metrics; empty if it could not be judged at all.
        passport: On what and how they were measured.
        obstacle: Why they don't compare with the candidate's, a sentence; None if they do.
        resampled: Both models' AP and its differences in each slice.
    """

    version: str
    metrics: Mapping[str, Any]
    passport: Mapping[str, Any]
    obstacle: str | None = None
    resampled: Mapping[str, Resampled] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """What the rules of the gate look at.

    Attributes:
        metrics: The candidate's metrics.
        slices: Metrics of the slices that floors are set for.
        names: The slices that a name in the settings stands for: of `keypoint` those of all keypoints.
        data_checks: The validate stage's report; None where there is none.
        production: The model in production; None if there is none yet.
    """

    metrics: Mapping[str, Any]
    slices: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    data_checks: Mapping[str, Any] | None = None
    production: Production | None = None

    def slices_of(self, name: str) -> Sequence[str]:
        """Returns the slices that a name stands for; a name that is not in `names`, for itself."""
        return self.names.get(name, (name,))


def apply_rules(settings: Gate, evidence: Evidence) -> list[Outcome]:
    """Applies all rules, also after one has failed, so that one run tells everything that is wrong."""
    outcomes: list[Outcome] = []
    for rule in settings.rules:
        if isinstance(rule, Floor):
            outcomes += _floors(rule, evidence)
        elif isinstance(rule, DataChecks):
            outcomes.append(_data_checks(rule, evidence.data_checks))
    regressions = [rule for rule in settings.rules if isinstance(rule, NoRegression)]
    improvements = [rule for rule in settings.rules if isinstance(rule, Improvement)]
    if not regressions and not improvements:
        return outcomes
    production = evidence.production
    comparable = _comparable(production, settings.incomparable_production == "waive")
    if production is None or production.obstacle is not None:
        return [*outcomes, comparable]
    compared = _no_regressions(settings, regressions, evidence, production)
    compared += _improvements(settings, improvements, evidence, production)
    # That the two can be compared is nothing to pass by where no slice has anybody to compare them on.
    return [*outcomes, comparable, *compared] if compared else outcomes


def _floors(rule: Floor, evidence: Evidence) -> list[Outcome]:
    outcomes = []
    for name in evidence.slices_of(rule.slice):
        metrics = evidence.metrics if name == ALL else evidence.slices.get(name, {})
        if name == rule.slice or metrics.get(rule.metric, 0.0) is not None:  # else of a group, and nobody is here
            outcomes.append(floor(rule.metric, rule.at_least, metrics, "the candidate", slice_name=name))
    return outcomes


def floor(
    metric: str,
    bound: float,
    metrics: Mapping[str, Any],
    whose: str,
    *,
    slice_name: str | None = None,
    artifact: str | None = None,
) -> Outcome:
    """Judges whether a figure reaches a floor."""
    name = " ".join(part for part in (artifact, f"{metric}{_in(slice_name)} reaches its floor") if part)
    value, fault = number(metrics, metric, f"{whose}{where(slice_name)}")
    if value is None:
        return Outcome(name, "floor", False, fault, metric, slice_name, artifact, bound=bound)
    passed = value >= bound - TOLERANCE
    link, digits = "and" if passed else "but", digits_of(value, bound)
    of = f" of {artifact}" if artifact else ""
    what = f"{title(metric)}{where(slice_name)}{of}"
    sentence = f"{what} is {value:.{digits}f}, {link} at least {bound:.{digits}f} is required."
    return Outcome(name, "floor", passed, sentence, metric, slice_name, artifact, value, bound=bound)


def _data_checks(rule: DataChecks, report: Mapping[str, Any] | None) -> Outcome:
    name = "data checks passed"
    if report is None or not isinstance(report.get("passed"), bool):
        return Outcome(name, "data", False, "There is no report of the data checks, so they prove nothing.")
    errors, warnings = int(report.get("failed_errors", 0)), int(report.get("failed_warnings", 0))
    allowed = rule.warnings
    passed = report["passed"] and errors == 0 and (allowed is None or warnings <= allowed)
    total = len(report.get("checks", []))
    sentence = f"Of {total} checks of the data {errors} failed as errors and {warnings} as warnings"
    sentence += "." if allowed is None else f", of which {allowed} may."
    return Outcome(name, "data", passed, sentence, candidate=float(warnings), bound=allowed)


def _comparable(production: Production | None, waive: bool) -> Outcome:
    if production is None:
        sentence = "No model is in production yet, so there is none to fall behind."
        return Outcome("first model", "no_regression", True, sentence)
    name = "comparable with production"
    if production.obstacle is not None:
        sentence = f"Version {production.version} in production could not be compared: {production.obstacle}"
        if waive:
            sentence += " gate.incomparable_production waives the comparison: only the other rules have decided."
        return Outcome(name, "no_regression", waive, sentence)
    sentence = f"Version {production.version} in production was judged on the same images in the same way."
    return Outcome(name, "no_regression", True, sentence)


def _no_regressions(
    settings: Gate, rules: Sequence[NoRegression], evidence: Evidence, production: Production
) -> list[Outcome]:
    """Judges all slices of all rules on regression.

    To reject, a loss beyond the margin must be proven: p is that of no such loss, corrected for the number of slices,
    since among many slices one looks worse by chance. To demand non-inferiority, its absence must be proven in every
    slice: p is that of such a loss, and needs no correction, since passing takes all proofs at once (Berger,
    Technometrics 24, 1982).
    """
    demand = settings.mode == "demand_non_inferiority"
    found: list[tuple[Outcome, Resampled | None]] = []
    for rule in rules:
        for name in dict.fromkeys(name for part in rule.slices for name in evidence.slices_of(part)):
            resampled = production.resampled.get(name)
            if name not in rule.slices and (resampled is None or resampled.persons == 0):
                continue  # one of a group, of whom there is nobody here
            found.append(_regression(settings, rule, name, resampled))
    tested = {str(i): (o.p_value, r.images) for i, (o, r) in enumerate(found) if r and o.p_value is not None}
    _require_resamples(
        settings, [images for _, images in tested.values()], "rule out a loss" if demand else "prove a loss",
        at_once=not demand,
    )  # fmt: skip
    corrected = {} if demand else holm({key: p_value for key, (p_value, _) in tested.items()})
    return [
        _with_verdict(
            settings, replace(o, p_value_holm=corrected.get(str(i))), resampled, production.version, len(tested)
        )
        if resampled
        else o
        for i, (o, resampled) in enumerate(found)
    ]


def _require_resamples(settings: Gate, images: Sequence[int], what: str, *, at_once: bool = False) -> None:
    """Refuses so few resamples that what a rule asks for could never be proven, whatever they say.

    Args:
        settings: How many there are.
        images: By how many images each slice is shown.
        what: What must be proven there.
        at_once: Whether looking at so many slices is corrected for.
    """
    level = (1 - settings.confidence) / 2 / (max(1, len(images)) if at_once else 1)
    needed = max((resamples_needed(level, n) for n in images), default=0)
    if settings.resamples + 1 >= needed:
        return
    there = f"a slice shown by {images[0]} images"
    if len(images) > 1:
        each = "one" if at_once else "each"
        there = f"{each} of {len(images)} slices, of which the least is shown by {min(images)} images"
    raise PosefoundryError(
        f"To {what} in {there}, at confidence {settings.confidence:g}, expected gate.resamples of at least {needed}, "
        f"got {settings.resamples}."
    )


def _regression(
    settings: Gate, rule: NoRegression, name: str, resampled: Resampled | None
) -> tuple[Outcome, Resampled | None]:
    """Returns the figures, as yet without a verdict, and what they rest on; None if nothing."""
    label = f"{rule.metric}{_in(name)} keeps up with production"
    outcome = Outcome(label, "no_regression", False, "", rule.metric, name, margin=rule.margin)
    test = p_value_not_above if settings.mode == "demand_non_inferiority" else p_value_not_below
    return _compared(settings, outcome, resampled, rule.metric, -rule.margin, test)


def _compared(
    settings: Gate, outcome: Outcome, resampled: Resampled | None, metric: str, shift: float, test: Test
) -> tuple[Outcome, Resampled | None]:
    """Adds the figures of a comparison: the bound lies at production's figure plus `shift`, and `test` asks of it."""
    difference = resampled.of(metric) if resampled else None
    if resampled is None or difference is None or math.isnan(difference.value):
        sentence = f"{title(metric)}{where(outcome.slice)} has no value on these test images, so it proves nothing."
        return replace(outcome, sentence=sentence), None
    images = resampled.images
    return replace(
        outcome, candidate=difference.candidate, production=difference.production,
        bound=difference.production + shift, difference=difference.value,
        interval=confidence_interval(difference.resampled, settings.confidence, images),
        p_value=test(difference.resampled, shift, images) if images >= MIN_IMAGES else None,
    ), resampled  # fmt: skip


def _with_verdict(settings: Gate, outcome: Outcome, resampled: Resampled, version: str, n_tests: int) -> Outcome:
    """Adds whether a figure that has been compared may pass, and the sentence."""
    demand = settings.mode == "demand_non_inferiority"
    margin = outcome.margin or 0.0
    head = f"{title(str(outcome.metric))}{where(outcome.slice)} is {_comparison(outcome, version)}"
    loss = f"a loss of more than {margin:.3f}" if margin else "a loss"
    if outcome.p_value is None or outcome.interval is None:
        return replace(outcome, passed=not demand, sentence=f"{head}; {_too_few(resampled.images)}.")
    draws = resampled.of(str(outcome.metric)).resampled
    drop = visible_drop(draws, resampled.images, settings.confidence, tests=1 if demand else n_tests)
    shown = interval_in_words(outcome.interval, settings.confidence)
    alpha = (1 - settings.confidence) / 2
    if demand:
        passed = outcome.p_value <= alpha
        verdict = f"and {loss} is ruled out" if passed else f"but {loss} is not ruled out"
        return replace(outcome, passed=passed, visible_drop=drop, sentence=f"{head}, {verdict} ({shown}).")
    p_value = outcome.p_value if outcome.p_value_holm is None else outcome.p_value_holm
    passed = p_value > alpha
    among = f"{_p(p_value)} among {n_tests} slices" if n_tests > 1 else _p(p_value)
    verdict = f"{loss} is not proven" if passed else f"{loss} is proven"
    return replace(outcome, passed=passed, visible_drop=drop, sentence=f"{head}; {verdict} ({shown}, {among}).")


def _improvements(
    settings: Gate, rules: Sequence[Improvement], evidence: Evidence, production: Production
) -> list[Outcome]:
    """Judges all slices of all rules on improvement. A gain must be proven, so one of nobody is none."""
    outcomes, images = [], []
    for rule in rules:
        names = evidence.slices_of(rule.slice)
        persons = {name: entry.persons for name, entry in production.resampled.items()}
        shown = [name for name in names if name == rule.slice or persons.get(name)]
        if not shown:
            sentence = f"No person in the test images belongs to a slice of {rule.slice}, so no gain is proven there."
            outcomes.append(_unproven(rule, rule.slice, sentence))
        for name in shown:
            outcome = _improvement(settings, rule, name, production)
            outcomes.append(outcome)
            images += [production.resampled[name].images] if outcome.p_value is not None else []
    _require_resamples(settings, images, "prove a gain")
    return outcomes


def _unproven(rule: Improvement, slice_name: str, sentence: str = "") -> Outcome:
    label = f"{rule.metric}{_in(slice_name)} is better than production"
    return Outcome(label, "improvement", False, sentence, rule.metric, slice_name, margin=rule.margin)


def _improvement(settings: Gate, rule: Improvement, name: str, production: Production) -> Outcome:
    outcome, resampled = _compared(
        settings, _unproven(rule, name), production.resampled.get(name), rule.metric, rule.margin, p_value_not_above
    )
    if resampled is None:
        return outcome
    head = f"{title(rule.metric)}{where(name)} is {_comparison(outcome, production.version)}"
    if outcome.p_value is None or outcome.interval is None:
        return replace(outcome, sentence=f"{head}; {_too_few(resampled.images)}.")
    passed = outcome.p_value <= (1 - settings.confidence) / 2
    gain = f"a gain of more than {rule.margin:.3f}" if rule.margin else "a gain"
    shown = interval_in_words(outcome.interval, settings.confidence)
    sentence = f"{head}; {gain} is {'' if passed else 'not '}proven ({shown}, {_p(outcome.p_value)})."
    return replace(outcome, passed=passed, sentence=sentence)


def number(metrics: Mapping[str, Any], metric: str, whose: str) -> tuple[float | None, str]:
    """Returns a metric's value, or None and the sentence that says why there is no value to judge by."""
    if metric not in metrics:
        near = difflib.get_close_matches(metric, metrics, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return None, f"There is no metric {metric} of {whose}, so it proves nothing.{hint}"
    value = metrics[metric]
    if value is None:
        return None, f"{title(metric)} of {whose} has no value on these test images, so it proves nothing."
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None, f"{title(metric)} of {whose} is not a number ({value}), so it proves nothing."
    return float(value), ""


def _comparison(outcome: Outcome, version: str) -> str:
    value, reference = outcome.candidate or 0.0, outcome.production or 0.0
    change = value - reference
    if abs(change) <= TOLERANCE:
        return f"{value:.3f}, equal to version {version} in production"
    digits = max(digits_of(value, reference), digits_of(abs(change), 0.0))
    side = "above" if change > 0 else "below"
    return f"{value:.{digits}f}, {abs(change):.{digits}f} {side} the {reference:.{digits}f} of version {version}"


def _too_few(images: int) -> str:
    show = "image shows" if images == 1 else "images show"
    return f"only {images} {show} such persons, and fewer than {MIN_IMAGES} prove nothing"


def _p(value: float) -> str:
    return "p below 0.001" if value < 0.001 else f"p {value:.2g}"


def _in(slice_name: str | None) -> str:
    """Returns a slice as it follows a metric in a rule's name, where it is called as in the settings."""
    return "" if slice_name in (None, ALL) else f" in {slice_name}"
