"""Stage gate: is the candidate good enough, and no worse than the model in production?"""

import tempfile
from pathlib import Path
from typing import Any

from posefoundry.config import Evaluate, Gate, Register
from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.evaluation.gate import Decision, Production, decide
from posefoundry.evaluation.html import write_decision_page
from posefoundry.evaluation.judge import judge_weights
from posefoundry.evaluation.passport import first_difference
from posefoundry.evaluation.progress import progress_bar
from posefoundry.files import atomic_directory, read_json, sha256_of_file, write_json_atomic
from posefoundry.registry import store
from posefoundry.registry.runs import log_to_run
from posefoundry.registry.versions import PRODUCTION, aliases_of, production_weights
from posefoundry.stages.evaluate import SPLIT
from posefoundry.stages.runner import run_as_command


def run(
    settings: Gate, evaluate: Evaluate, register: Register, *, raw: Path, evaluation: Path, run: Path, report: Path
) -> None:
    """Decides by the gate's rules whether the candidate may go on; exit status 3 if not."""
    metrics, passport = (_read_object(evaluation / name) for name in ("metrics.json", "passport.json"))
    production = None
    if settings.max_regression:
        production = _judge_production(register.model_name, metrics, passport, evaluate, raw)
    decision = decide(metrics, production, floors=settings.floors, max_regression=settings.max_regression)
    document = {
        **decision.to_dict(),
        "production_version": production.version if production else None,
        "candidate": metrics,
        "production": production.metrics if production else None,
        "passports": {"candidate": passport, "production": production.passport if production else None},
    }
    with atomic_directory(report) as folder:
        write_json_atomic(folder / "decision.json", document)
        write_decision_page(
            folder,
            annotations=raw / "annotations" / f"{SPLIT}.json",
            images=raw / "images" / SPLIT,
            candidate_detections=evaluation / "detections.json",
        )
    _print_summary(decision)
    tags = {
        "gate.passed": str(decision.passed).lower(),
        "gate.verdict": decision.verdict,
        "gate.compared_with": production.version if production else "",
    }
    log_to_run(
        run,
        {"gate_passed": float(decision.passed)},
        [report / "index.html", report / "decision.json"],
        tags,
        stage="gate",
    )
    if not decision.passed:
        failed = (f"{rule.name}: {rule.sentence}" for rule in decision.rules if not rule.passed)
        raise RejectedError("These rules fail:\n  " + "\n  ".join(failed))


def _judge_production(
    model_name: str, metrics: dict[str, Any], passport: dict[str, Any], settings: Evaluate, raw: Path
) -> Production | None:
    """Judges the model in production on the candidate's test images; None if there is none.

    A store out of reach is an error. A version that is there and cannot be judged is an obstacle, which rejects:
    nobody has shown that the candidate is no worse.
    """
    version = aliases_of(store.client(), model_name).get(PRODUCTION)
    if version is None:
        return None
    try:
        with tempfile.TemporaryDirectory() as folder, progress_bar("evaluate production") as progress:
            production = production_weights(model_name, Path(folder))
            if production is None:  # withdrawn since
                return None
            if sha256_of_file(production.weights) == passport.get("weights_sha256"):
                return Production(version, metrics, passport)
            judgement = judge_weights(
                production.weights,
                raw / "annotations" / f"{SPLIT}.json",
                raw / "images" / SPLIT,
                settings,
                progress=progress,
            )
    except PosefoundryError as error:
        return Production(version, {}, {}, str(error))
    obstacle = None
    if field := first_difference(passport, judgement.passport):
        obstacle = (
            f"{field} was {passport.get(field)} for the candidate and is {judgement.passport.get(field)} now. "
            "Evaluate the candidate again: dvc repro --force evaluate."
        )
    return Production(version, judgement.metrics, judgement.passport, obstacle)


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise PosefoundryError(f"{path}: expected what the evaluate stage writes, got {str(content)[:100]}.")
    return content


def _print_summary(decision: Decision) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("rule", title="Gate", title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("at least", justify="right")
    table.add_column("")
    for rule in decision.rules:
        numbers = ("" if number is None else f"{number:.3f}" for number in (rule.value, rule.bound))
        result = Text("pass", "green") if rule.passed else Text("fail", "bold red")
        table.add_row(Text(rule.name), *numbers, result)
    console = Console()
    console.print(table)
    console.print(decision.verdict, style="green" if decision.passed else "bold red", highlight=False, markup=False)


if __name__ == "__main__":
    run_as_command("gate", run)
