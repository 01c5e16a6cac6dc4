"""The gates: may this candidate follow the model in production, and may these files ship? Decisions with reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from posefoundry.config import (
    ArtifactFloor,
    Gate,
    Improvement,
    LatencyBudget,
    NoRegression,
    Parity,
    Release,
    SizeBudget,
)
from posefoundry.evaluation.failures import cause, failures, list_of_failures
from posefoundry.evaluation.intervals import confidence_interval
from posefoundry.evaluation.power import Asked, Power, power_of, visible_drop
from posefoundry.evaluation.rules import (
    TOLERANCE,
    Evidence,
    Outcome,
    apply_rules,
    floor,
    number,
)
from posefoundry.evaluation.slices import ALL
from posefoundry.evaluation.wording import digits_of, interval_in_words, title


@dataclass(frozen=True)
class Decision:
    """A gate's answer: passed only if every rule did.

    Attributes:
        passed: Whether all rules hold.
        verdict: What came of the rules.
        sentence: What it means, for somebody who doesn't know the rules.
        rules: The rules' outcomes.
    """

    passed: bool
    verdict: str
    sentence: str
    rules: tuple[Outcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain types for JSON."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "rules": [asdict(outcome) for outcome in self.rules],
        }


def decide(settings: Gate, evidence: Evidence) -> Decision:
    """Decides whether the candidate may follow the model in production."""
    outcomes = apply_rules(settings, evidence)
    production = evidence.production
    if production is None:
        may, must_not = "The candidate may be the first in production", "The candidate must not go into production"
    else:
        may, must_not = (
            f"The candidate {word} follow version {production.version} in production" for word in ("may", "must not")
        )
    passed = bool(outcomes) and all(outcome.passed for outcome in outcomes)
    if passed:
        reason = _against_production(settings, evidence)
    else:
        version = production.version if production else None
        reason = cause(outcomes, version=version, must_prove=settings.mode == "demand_non_inferiority")
    return Decision(passed, _verdict(outcomes), f"{may if passed else must_not}: {reason}", tuple(outcomes))


def _against_production(settings: Gate, evidence: Evidence) -> str:
    value, _ = number(evidence.metrics, "oks_ap", "the candidate")
    of_candidate = "it keeps all rules" if value is None else f"its OKS AP is {value:.3f}"
    compares = any(isinstance(rule, NoRegression | Improvement) for rule in settings.rules)
    if compares and evidence.production and evidence.production.obstacle:
        return f"{of_candidate}; it could not be compared, which gate.incomparable_production waives."
    resampled = evidence.production.resampled.get(ALL) if evidence.production else None
    if resampled is None or not resampled.persons:
        return f"{of_candidate}."
    difference = resampled.of("oks_ap")
    interval = confidence_interval(difference.resampled, settings.confidence, resampled.images)
    against = f"{of_candidate} against {difference.production:.3f}, a difference of {difference.value:+.3f}"
    if interval is None:
        return f"{against}."
    told = f"{against} ({interval_in_words(interval, settings.confidence)})."
    if interval[1] < 0:
        told += " That it is worse is proven; that it is worse by more than the rules allow is not."
    return told


def power_of_gate(settings: Gate, evidence: Evidence, decision: Decision, images: int) -> Power | None:
    """Returns what the images can show of the differences that the rules ask for; None without anything to compare.

    Args:
        settings: The rules.
        evidence: What they looked at.
        decision: What came of it.
        images: How many test images there are.
    """
    tested = [rule for rule in decision.rules if rule.visible_drop is not None]
    asked = [Asked(rule.slice or ALL, rule.metric or "", rule.visible_drop or 0.0, rule.margin) for rule in tested]
    demand = settings.mode == "demand_non_inferiority"
    whole = [entry for entry in asked if entry.slice_name == ALL]
    if not whole and evidence.production and ALL in evidence.production.resampled:
        resampled = evidence.production.resampled[ALL]
        drop = visible_drop(resampled.of("oks_ap").resampled, resampled.images, settings.confidence)
        whole = [] if drop is None else [Asked(ALL, "oks_ap", drop, None)]
    if not whole:
        return None
    return power_of(
        max(whole, key=lambda entry: entry.visible_drop - (entry.margin or 0.0)),
        images=images,
        confidence=settings.confidence,
        tests=max(1, sum(rule.p_value_holm is not None for rule in decision.rules)),
        must_prove=demand,
        of_slices=[entry for entry in asked if entry.slice_name != ALL],
    )


@dataclass(frozen=True)
class Shipped:
    """An artifact and what it did.

    Attributes:
        name: Its file name.
        n_bytes: Its size.
        metrics: Its metrics on the test images; empty if it could not be judged.
        obstacle: Why it could not be judged, a sentence; None if it could.
        latency_ms: By batch size the statistics of a batch's time, from pixels to persons.
    """

    name: str
    n_bytes: int
    metrics: Mapping[str, Any]
    obstacle: str | None = None
    latency_ms: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


def decide_release(settings: Release, artifacts: Sequence[Shipped], reference: Mapping[str, Any]) -> Decision:
    """Decides whether what was exported may ship.

    Args:
        settings: The rules.
        artifacts: All that was exported: nothing ships that was not judged.
        reference: The metrics of the PyTorch model, on the same images.
    """
    outcomes = [_judged(artifact) for artifact in artifacts]
    for rule in settings.rules:
        of_rule = [artifact for artifact in artifacts if rule.artifact in (None, artifact.name)]
        if not of_rule:
            sentence = f"{rule.artifact or 'An artifact'} was not built here, so it does not ship."
            outcomes.append(Outcome(f"{rule.artifact} {rule.rule}", _kind(rule.rule), bool(artifacts), sentence,
                                    artifact=rule.artifact))  # fmt: skip
        for artifact in of_rule:
            if artifact.obstacle is None or isinstance(rule, SizeBudget):
                outcomes.append(_release_rule(rule, artifact, reference))
    names = " and ".join(artifact.name for artifact in artifacts)
    passed = bool(artifacts) and all(outcome.passed for outcome in outcomes)
    sentence = f"The exported {'file' if len(artifacts) == 1 else 'files'} {names} "
    sentence += "may ship." if passed else f"must not ship: {cause(outcomes)}"
    if not artifacts:
        sentence = "Nothing was exported, so there is nothing to ship."
    return Decision(passed, _verdict(outcomes), sentence, tuple(outcomes))


def _judged(artifact: Shipped) -> Outcome:
    name = f"{artifact.name} can be judged"
    if artifact.obstacle is not None:
        sentence = f"{artifact.name} could not be judged, and nothing ships unjudged: {artifact.obstacle}"
        return Outcome(name, "parity", False, sentence, artifact=artifact.name)
    sentence = f"{artifact.name} was judged on the same images in the same way as the PyTorch model."
    return Outcome(name, "parity", True, sentence, artifact=artifact.name)


def _release_rule(
    rule: ArtifactFloor | Parity | LatencyBudget | SizeBudget, artifact: Shipped, reference: Mapping[str, Any]
) -> Outcome:
    if isinstance(rule, ArtifactFloor):
        return floor(rule.metric, rule.at_least, artifact.metrics, artifact.name, artifact=artifact.name)
    if isinstance(rule, Parity):
        return _parity(rule, artifact, reference)
    if isinstance(rule, LatencyBudget):
        return _latency(rule, artifact)
    name, size_mb = f"{artifact.name} is small enough", artifact.n_bytes / 1e6
    passed = size_mb <= rule.at_most_mb
    link = "and" if passed else "but"
    sentence = f"{artifact.name} has {size_mb:.1f} MB, {link} at most {rule.at_most_mb:g} MB are allowed."
    return Outcome(name, "budget", passed, sentence, "size_mb", artifact=artifact.name, candidate=size_mb,
                   bound=rule.at_most_mb)  # fmt: skip


def _parity(rule: Parity, artifact: Shipped, reference: Mapping[str, Any]) -> Outcome:
    name = f"{artifact.name} {rule.metric} is that of PyTorch"
    value, fault = number(artifact.metrics, rule.metric, artifact.name)
    expected, fault_of_reference = number(reference, rule.metric, "the PyTorch model")
    if value is None or expected is None:
        sentence = fault or fault_of_reference
        return Outcome(name, "parity", False, sentence, rule.metric, None, artifact.name, value, expected, rule.at_most)
    difference = value - expected
    passed = abs(difference) <= rule.at_most + TOLERANCE
    digits = max(digits_of(abs(difference), rule.at_most), 4)
    link = "and" if passed else "but"
    sentence = (
        f"{title(rule.metric)} of {artifact.name} is {value:.{digits}f}, {difference:+.{digits}f} from the PyTorch "
        f"model's {expected:.{digits}f}, {link} at most {rule.at_most:.{digits}f} either way is allowed."
    )
    return Outcome(name, "parity", passed, sentence, rule.metric, None, artifact.name, value, expected, rule.at_most,
                   difference)  # fmt: skip


def _latency(rule: LatencyBudget, artifact: Shipped) -> Outcome:
    what = f"{rule.statistic} of a batch of {rule.batch_size}"
    name, metric = f"{artifact.name} is fast enough ({what})", f"latency_{rule.statistic}_ms"
    value = artifact.latency_ms.get(rule.batch_size, {}).get(rule.statistic)
    if value is None:
        measured = ", ".join(map(str, artifact.latency_ms)) or "none"
        sentence = (
            f"The {what} of {artifact.name} was not measured (measured batch sizes: {measured}), so it proves nothing."
        )
        return Outcome(name, "budget", False, sentence, metric, artifact=artifact.name, bound=rule.at_most_ms)
    passed = value <= rule.at_most_ms
    link = "and" if passed else "but"
    sentence = (
        f"{artifact.name} takes {value:.1f} ms ({what}, from pixels to persons), {link} at most {rule.at_most_ms:g} ms "
        "are allowed."
    )
    return Outcome(name, "budget", passed, sentence, metric, artifact=artifact.name, candidate=value,
                   bound=rule.at_most_ms)  # fmt: skip


def _kind(rule: str) -> str:
    return {"latency": "budget", "size": "budget"}.get(rule, rule)


def _verdict(outcomes: Sequence[Outcome]) -> str:
    failed = failures(outcomes)
    if not outcomes:
        return f"Rejected: {cause(outcomes)}"
    if not failed:
        return f"Passed: all {len(outcomes)} rules hold." if len(outcomes) > 1 else f"Passed: {outcomes[0].sentence}"
    if len(failed) == 1:
        return f"Rejected: {failed[0].sentence}"
    return f"Rejected: {len(failed)} of {len(outcomes)} rules fail: {list_of_failures(outcomes)}."
