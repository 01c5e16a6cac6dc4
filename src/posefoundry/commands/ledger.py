"""The registry's commands: what they print."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posefoundry.registry import promotion, versions
from posefoundry.registry.ledger import history


def promote(model_name: str, version_or_alias: str, why: str) -> None:
    """Promotes and says what is where now."""
    _tell(promotion.promote(model_name, version_or_alias, why=why))


def rollback(model_name: str, why: str) -> None:
    """Rolls back and says what is where now."""
    _tell(promotion.rollback(model_name, why=why))


def show_versions(model_name: str) -> None:
    """Prints the versions as a table, newest first."""
    console = _console()
    found = versions.list_versions(model_name)
    if not found:
        console.print(f"No version of {model_name} is registered yet. The pipeline registers one: dvc repro")
        return
    marks = _measured_on(found)
    columns = ["version", "aliases", "oks_ap", "p50 ms", "gate", "commit", "created (UTC)"]
    if any(marks.values()):
        columns.insert(3, "measured on")
    table = Table(title=f"Versions of {model_name}", title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in ("version", "oks_ap", "p50 ms") else "left")
    for entry in found:
        commit = entry.tags.get("git.commit", "")[:9] + (" +changes" if entry.tags.get("git.dirty") == "true" else "")
        table.add_row(
            entry.version,
            Text(", ".join(entry.aliases), style="bold green" if versions.PRODUCTION in entry.aliases else ""),
            entry.tags.get("oks_ap", ""),
            *([Text(marks[entry.version], style="yellow")] if "measured on" in columns else []),
            entry.tags.get("latency_p50_ms", ""),
            Text("passed", style="green") if entry.gate_passed else Text("rejected", style="red"),
            commit,
            entry.created.strftime("%Y-%m-%d %H:%M"),
        )
    console.print(table)
    if note := _judged_before(found):
        console.print(note)


def _judged_before(found: Sequence[versions.ModelVersion]) -> str | None:
    """Returns that the gate compared the candidate with another version than the one in production, if it did."""
    behind = {alias: entry for entry in found for alias in entry.aliases}
    candidate, production = (behind.get(alias) for alias in (versions.CANDIDATE, versions.PRODUCTION))
    if candidate is None or production is None or candidate is production:
        return None
    compared_with = candidate.tags.get("gate.compared_with")
    if compared_with in (None, "", production.version):
        return None
    return (
        f"The gate compared version {candidate.version} with version {compared_with}, but in production is version "
        f"{production.version}.\nTo judge it again where it was made: dvc repro --force --single-item gate && dvc repro"
    )


def _measured_on(found: Sequence[versions.ModelVersion]) -> dict[str, str]:
    """Returns by version what keeps its figures from being compared with production's; empty where nothing does."""
    production = next((entry for entry in found if versions.PRODUCTION in entry.aliases), None)
    if production is None:
        return {entry.version: "" for entry in found}
    theirs = production.tags.get(versions.MEASURED_ON)
    marks = {}
    for entry in found:
        ours = entry.tags.get(versions.MEASURED_ON)
        mark = "not known" if not ours or not theirs else "" if ours == theirs else "other test data or rules"
        marks[entry.version] = "" if entry is production else mark
    return marks


def show_history(model_name: str) -> bool:
    """Prints the ledger, oldest first, and what is wrong with it on stderr; True if nothing is."""
    console = _console()
    told = history(model_name)
    if not told.records:
        console.print(f"Nothing of {model_name} was ever promoted.")
    else:
        table = Table(title=f"Promotions of {model_name}", title_justify="left", show_lines=True)
        for column in ("#", "when (UTC)", "what", "from", "to", "who", "why"):
            table.add_column(column)
        for record in told.records:
            why = Text(record.why)
            for note in record.notes:
                why.append(f"\nnote: {note}", style="yellow")
            when = record.when[:16].replace("T", " ")
            start = record.from_version or "-"
            row = (str(record.number), when, record.action, start, record.to_version, Text(record.who), why)
            table.add_row(*row)
        console.print(table)
    for problem in told.problems:
        print(f"posefoundry: the history is damaged: {problem}.", file=sys.stderr)
    return not told.problems


def _tell(outcome: promotion.Outcome) -> None:
    record, completed = outcome.record, outcome.completed
    if completed:
        print(f"An interrupted {completed.action} was finished first: record {completed.number}, by {completed.who}.")
    print(
        f"{record.model_name}: version {record.to_version} is in production, previous is "
        f"{record.from_version or 'none'} (record {record.number}: {record.action} by {record.who})."
    )
    for note in record.notes:
        print(f"Note: {note}.", file=sys.stderr)


def _console() -> Console:
    console = Console(highlight=False)
    # Into a file or a pipe, a table keeps its columns whole.
    return console if console.is_terminal else Console(highlight=False, width=160)
