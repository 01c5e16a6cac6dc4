"""Stage gate: is the candidate good enough, and no worse than the model in production?"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posefoundry.config import Evaluate, Gate, Register
from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.evaluation.gate import Decision, Production, decide
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
    candidate = read_json(evaluation / "metrics.json")
    if not isinstance(candidate, dict):
        raise PosefoundryError(f"{evaluation / 'metrics.json'}: expected metrics by name, got {str(candidate)[:100]}.")
    production = _judge_production(register.model_name, candidate, evaluate, raw) if settings.max_regression else None
    decision = decide(candidate, production, floors=settings.floors, max_regression=settings.max_regression)
    with atomic_directory(report) as folder:
        write_json_atomic(folder / "decision.json", _document(decision, candidate, production))
    _print_summary(decision)
    tags = {
        "gate.passed": str(decision.passed).lower(),
        "gate.verdict": decision.verdict,
        "gate.compared_with": production.version if production else "",
    }
    log_to_run(run, {"gate_passed": float(decision.passed)}, [report / "decision.json"], tags, stage="gate")
    if not decision.passed:
        failed = (f"{rule.name}: {rule.sentence}" for rule in decision.rules if not rule.passed)
        raise RejectedError("These rules fail:\n  " + "\n  ".join(failed))


def _judge_production(
    model_name: str, candidate: Mapping[str, Any], settings: Evaluate, raw: Path
) -> Production | None:
    """Judges the model in production on the candidate's test images; None if there is none.

    A store out of reach is an error. A version that is there and cannot be judged is an obstacle, which rejects:
    nobody has shown that the candidate is no worse.
    """
    version = aliases_of(store.client(), model_name).get(PRODUCTION)
    if version is None:
        return None
    passport = candidate.get("passport") or {}
    try:
        with tempfile.TemporaryDirectory() as folder, progress_bar("evaluate production") as progress:
            production = production_weights(model_name, Path(folder))
            if production is None:  # withdrawn since
                return None
            if sha256_of_file(production.weights) == passport.get("weights_sha256"):
                return Production(version, candidate)
            metrics = judge_weights(
                production.weights,
                raw / "annotations" / f"{SPLIT}.json",
                raw / "images" / SPLIT,
                settings,
                progress=progress,
            ).metrics
    except PosefoundryError as error:
        return Production(version, {}, str(error))
    field = first_difference(passport, metrics["passport"])
    if field is None:
        return Production(version, metrics)
    return Production(
        version,
        metrics,
        f"{field} was {passport.get(field)} for the candidate and is {metrics['passport'].get(field)} now. "
        "Evaluate the candidate again: dvc repro --force evaluate.",
    )


def _document(decision: Decision, candidate: Mapping[str, Any], production: Production | None) -> dict[str, Any]:
    judged = {"candidate": candidate, "production": production.metrics if production else {}}
    return {
        **decision.to_dict(),
        "production_version": production.version if production else None,
        **{who: {key: value for key, value in metrics.items() if key != "passport"} for who, metrics in judged.items()},
        "passports": {who: metrics.get("passport") for who, metrics in judged.items()},
    }


def _print_summary(decision: Decision) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("rule", title="Gate", title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("at least", justify="right")
    table.add_column("")
    for rule in decision.rules:
        numbers = ("" if number is None else f"{number:.3f}" for number in (rule.value, rule.bound))
        table.add_row(rule.name, *numbers, "[green]pass[/]" if rule.passed else "[bold red]fail[/]")
    console = Console()
    console.print(table)
    console.print(decision.verdict, style="green" if decision.passed else "bold red", highlight=False, markup=False)


if __name__ == "__main__":
    run_as_command("gate", run)
