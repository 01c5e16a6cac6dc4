"""Stage gate: is the candidate good enough, and no worse than the model in production?"""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posefoundry.config import Evaluate, Floor, Gate, Improvement, NoRegression, Register
from posefoundry.datasets.coco import load_coco_keypoints
from posefoundry.datasets.tags import TAGS_NAME
from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.evaluation.comparison import changed_images, compare, differences, named_slices, slice_metrics
from posefoundry.evaluation.error_changes import error_changes
from posefoundry.evaluation.error_types import diagnose
from posefoundry.evaluation.failures import failures
from posefoundry.evaluation.gate import Decision, decide, power_of_gate
from posefoundry.evaluation.html import write_decision_page
from posefoundry.evaluation.judge import evaluator_of, judge_weights
from posefoundry.evaluation.oks import Evaluation, OksEvaluator
from posefoundry.evaluation.passport import first_difference
from posefoundry.evaluation.power import Power
from posefoundry.evaluation.progress import progress_bar
from posefoundry.evaluation.rules import Evidence, Production
from posefoundry.evaluation.slices import ALL
from posefoundry.files import atomic_directory, read_json, sha256_of_file, write_json_atomic
from posefoundry.registry import store
from posefoundry.registry.runs import log_to_run
from posefoundry.registry.versions import PRODUCTION, aliases_of, production_weights
from posefoundry.stages.evaluate import SPLIT
from posefoundry.stages.runner import run_as_command

Detections = list[dict[str, Any]]


@dataclass(frozen=True)
class Contender:
    """A model as it did on the test images.

    Attributes:
        metrics: Its metrics.
        passport: On what and how they were measured.
        detections: Entries of a COCO results file.
        evaluation: What they are worth.
    """

    metrics: dict[str, Any]
    passport: dict[str, Any]
    detections: Detections
    evaluation: Evaluation


def run(
    settings: Gate,
    evaluate: Evaluate,
    register: Register,
    *,
    raw: Path,
    evaluation: Path,
    data_checks: Path,
    run: Path,
    report: Path,
) -> None:
    """Decides by the gate's rules whether the candidate may go on; exit status 3 if not."""
    evaluator, candidate = _candidate(raw, evaluation)
    # refuses unknown slices before anything is computed
    names = named_slices(candidate.evaluation.slicer, settings, evaluator.tags)
    production, judged = None, None
    if any(isinstance(rule, NoRegression | Improvement) for rule in settings.rules):
        production, judged = _judge_production(register.model_name, candidate, evaluate, raw)
    if production and judged:
        slices = list(dict.fromkeys(name for group in names.values() for name in group))
        production = replace(production, resampled=compare(candidate.evaluation, judged.evaluation, settings, slices))
    floors = [n for r in settings.rules if isinstance(r, Floor) and r.slice != ALL for n in names[r.slice]]
    evidence = Evidence(
        metrics=candidate.metrics,
        slices=slice_metrics(candidate.evaluation, floors),
        names=names,
        data_checks=read_object(data_checks) if data_checks.exists() else None,
        production=production,
    )
    decision = decide(settings, evidence)
    power = power_of_gate(settings, evidence, decision, len(evaluator.images))
    document = _document(settings, evidence, decision, power)
    document["passports"] = {"candidate": candidate.passport, "production": production.passport if production else None}
    document["errors"] = _errors(evaluator, candidate, judged, decision, document["differences"])
    document["changed_images"] = {"better": [], "worse": []}
    if judged:
        document["changed_images"] = changed_images(evaluator, candidate.evaluation, judged.evaluation)
    with atomic_directory(report) as folder:
        write_json_atomic(folder / "decision.json", document)
        if judged:
            content = json.dumps(judged.detections, separators=(",", ":"), allow_nan=False)
            (folder / "production_detections.json").write_text(content)
        write_decision_page(
            folder,
            annotations=raw / "annotations" / f"{SPLIT}.json",
            images=raw / "images" / SPLIT,
            candidate_detections=evaluation / "detections.json",
        )
    print_decision("Gate", decision)
    for sentence in (document["errors"]["sentence"], power and power.sentence):
        if sentence:
            print(sentence)
    _log(run, report, document)
    if not decision.passed:
        raise RejectedError(reasons(decision))


def reasons(decision: Decision) -> str:
    """Returns what fails, a line each, the worst first."""
    failed = [f"{rule.name}: {rule.sentence}" for rule in failures(decision.rules)]
    if not failed:
        return decision.sentence
    return "These rules fail:\n  " + "\n  ".join(failed)


def _candidate(raw: Path, evaluation: Path) -> tuple[OksEvaluator, Contender]:
    """Reads what the evaluate stage found out about the candidate."""
    metrics, passport = (read_object(evaluation / name) for name in ("metrics.json", "passport.json"))
    annotations = raw / "annotations" / f"{SPLIT}.json"
    evaluator = evaluator_of(annotations, load_coco_keypoints(annotations), raw / TAGS_NAME)
    detections = read_json(evaluation / "detections.json")
    return evaluator, Contender(metrics, passport, detections, evaluator.evaluate_in_detail(detections))


def _judge_production(
    model_name: str, candidate: Contender, settings: Evaluate, raw: Path
) -> tuple[Production | None, Contender | None]:
    """Judges the model in production on the candidate's test images; None if there is none.

    A store out of reach is an error. A version that is there and cannot be judged is an obstacle, which rejects:
    nobody has shown that the candidate is no worse.
    """
    version = aliases_of(store.client(), model_name).get(PRODUCTION)
    if version is None:
        return None, None
    try:
        with tempfile.TemporaryDirectory() as folder, progress_bar("evaluate production") as progress:
            production = production_weights(model_name, Path(folder))
            if production is None:  # withdrawn since
                return None, None
            if sha256_of_file(production.weights) == candidate.passport.get("weights_sha256"):
                return Production(version, candidate.metrics, candidate.passport), candidate
            judgement = judge_weights(
                production.weights,
                raw / "annotations" / f"{SPLIT}.json",
                raw / "images" / SPLIT,
                settings,
                tags=raw / TAGS_NAME,
                progress=progress,
            )
    except PosefoundryError as error:
        return Production(version, {}, {}, str(error)), None
    judged = Contender(judgement.metrics, judgement.passport, judgement.detections, judgement.evaluation)
    if field := first_difference(candidate.passport, judged.passport):
        obstacle = (
            f"{field} was {candidate.passport.get(field)} for the candidate and is {judged.passport.get(field)} now. "
            "Evaluate the candidate again: dvc repro --force evaluate."
        )
        return Production(version, judged.metrics, judged.passport, obstacle), None
    return Production(version, judged.metrics, judged.passport), judged


def _document(settings: Gate, evidence: Evidence, decision: Decision, power: Power | None) -> dict[str, Any]:
    production = evidence.production
    return decision.to_dict() | {
        "mode": settings.mode,
        "confidence": settings.confidence,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "production_version": production.version if production else None,
        "candidate": evidence.metrics,
        "production": production.metrics if production else None,
        "differences": differences(production.resampled, settings.confidence) if production else [],
        "power": power.to_dict() if power else None,
    }


def _errors(
    evaluator: OksEvaluator,
    candidate: Contender,
    judged: Contender | None,
    decision: Decision,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """Returns what kinds of mistake both models make, and which of them grew."""
    ours = diagnose(candidate.evaluation, evaluator.keypoint_names)
    theirs = None
    if judged:
        theirs = ours if judged is candidate else diagnose(judged.evaluation, evaluator.keypoint_names)
    sentence = error_changes(ours, theirs, decision.rules, rows)
    return {"candidate": ours, "production": theirs, "sentence": sentence}


def _log(run: Path, report: Path, document: dict[str, Any]) -> None:
    """Adds the decision to the training run."""
    metrics: dict[str, float | None] = {"gate_passed": float(document["passed"])}
    if overall := next((row for row in document["differences"] if row["slice"] == ALL), None):
        low, high = overall["interval"] or (None, None)
        metrics |= {
            "gate_oks_ap_difference": overall["difference"],
            "gate_oks_ap_difference_low": low,
            "gate_oks_ap_difference_high": high,
        }
    if document["power"]:
        metrics["gate_smallest_visible_drop"] = document["power"]["smallest_visible_drop"]
    tags = {
        "gate.passed": str(document["passed"]).lower(),
        "gate.verdict": document["verdict"],
        "gate.mode": document["mode"],
        "gate.compared_with": document["production_version"] or "",
    }
    log_to_run(run, metrics, [report / "index.html", report / "decision.json"], tags, stage="gate")


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object that an earlier stage wrote."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise PosefoundryError(f"{path}: expected the output of the stage before, got {str(content)[:100]}.")
    return content


def print_decision(heading: str, decision: Decision) -> None:
    """Shows a decision to whoever runs the stage."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("rule", title=heading, title_justify="left")
    for column in ("value", "bound", "interval"):
        table.add_column(column, justify="right")
    table.add_column("")
    for rule in decision.rules:
        form = ".0f" if rule.kind == "data" else ".3f"  # the data's figure is a count of warnings
        numbers = ["" if number is None else f"{number:{form}}" for number in (rule.candidate, rule.bound)]
        if rule.kind == "data" and not rule.passed:
            numbers[0] = ""  # it is faults that fail
        elif numbers[0] and rule.kind == "data":
            numbers[0] += " warning" if rule.candidate == 1 else " warnings"
        interval = f"{rule.interval[0]:+.3f} to {rule.interval[1]:+.3f}" if rule.interval else ""
        result = Text("pass", "green") if rule.passed else Text("fail", "bold red")
        table.add_row(Text(rule.name), *numbers, interval, result)
    console = Console()
    console.print(table)
    for sentence in (decision.verdict, decision.sentence):
        console.print(sentence, style="green" if decision.passed else "bold red", highlight=False, markup=False)


if __name__ == "__main__":
    run_as_command("gate", run)
