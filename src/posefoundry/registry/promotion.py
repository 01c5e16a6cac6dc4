"""Promotion and rollback: which version is in production, decided by people, recorded in the ledger."""

import getpass
import os
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json
from posefoundry.registry import ledger, store
from posefoundry.registry.ledger import MAX_TEXT_LENGTH, Record, in_words
from posefoundry.registry.versions import PREVIOUS, PRODUCTION, ModelVersion, aliases_of, fetch_artifact, resolve


@dataclass(frozen=True)
class Outcome:
    """What a promotion or rollback did; `completed` is an earlier one that was cut off and is now finished."""

    record: Record
    completed: Record | None = None


@store.faults_explained
def promote(model_name: str, version_or_alias: str, *, why: str, who: str | None = None) -> Outcome:
    """Puts a version into production and keeps the one that was there as `previous`.

    Raises:
        PosefoundryError: The version is unknown, did not pass the gate or is in production already; somebody else is
            promoting; the reason is missing.
    """
    _check_why(why)
    last, completed = ledger.last_record(model_name)
    wanted = resolve(model_name, version_or_alias)
    if completed and completed.action == "promote" and completed.to_version == wanted.version:
        return Outcome(completed, completed)
    verdict = _verdict_of_passed_gate(wanted)
    production = aliases_of(store.client(), model_name).get(PRODUCTION)
    if wanted.version == production:
        raise PosefoundryError(f"Version {wanted.version} of {model_name!r} is in production already; nothing to do.")
    compared_with = wanted.tags.get("gate.compared_with") or None
    notes = []
    if compared_with != production:
        notes.append(
            f"the gate compared version {wanted.version} with {in_words(compared_with)}, but in production is "
            f"{in_words(production)}"
        )
    record = Record(
        number=last.number + 1 if last else 1,
        action="promote",
        model_name=model_name,
        from_version=production,
        to_version=wanted.version,
        who=who or who_am_i(),
        why=why.strip(),
        when=_now(),
        gate_verdict=verdict,
        compared_with=compared_with,
        notes=tuple(notes),
        previous_record=last.sha256 if last else None,
    )
    ledger.act(record)
    return Outcome(record, completed)


@store.faults_explained
def rollback(model_name: str, *, why: str, who: str | None = None) -> Outcome:
    """Puts the version behind `previous` back into production; the one rolled back from becomes `previous`.

    Raises:
        PosefoundryError: There is nothing to roll back to, somebody else is promoting, or the reason is missing.
    """
    _check_why(why)
    last, completed = ledger.last_record(model_name)
    if completed and completed.action == "rollback":
        return Outcome(completed, completed)
    aliases = aliases_of(store.client(), model_name)
    production, previous = aliases.get(PRODUCTION), aliases.get(PREVIOUS)
    if production is None:
        raise PosefoundryError(
            f"Nothing of {model_name!r} is in production, so there is nothing to roll back. "
            'Promote a version first: posefoundry promote candidate --why "...".'
        )
    if previous is None or previous == production:
        raise PosefoundryError(
            f"Version {production} is the first of {model_name!r} in production: there is no previous one to roll back "
            "to. Promote another version instead; `posefoundry versions` lists them."
        )
    record = Record(
        number=last.number + 1 if last else 1,
        action="rollback",
        model_name=model_name,
        from_version=production,
        to_version=previous,
        who=who or who_am_i(),
        why=why.strip(),
        when=_now(),
        gate_verdict=resolve(model_name, previous).tags.get("gate.verdict", "")[:MAX_TEXT_LENGTH],
        compared_with=None,
        notes=(),
        previous_record=last.sha256 if last else None,
    )
    ledger.act(record)
    return Outcome(record, completed)


def who_am_i() -> str:
    """Returns `$POSEFOUNDRY_USER`, else git's user.name and user.email, else the login name."""
    if given := os.environ.get("POSEFOUNDRY_USER", "").strip():
        return given
    name, email = _git_setting("user.name"), _git_setting("user.email")
    if name:
        return f"{name} <{email}>" if email else name
    try:
        return email or getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def _verdict_of_passed_gate(wanted: ModelVersion) -> str:
    """Reads the decision that was registered with the version; a tag alone can be set by anybody in the UI.

    Raises:
        PosefoundryError: The gate did not pass it.
    """
    with tempfile.TemporaryDirectory() as folder:
        decision = read_json(fetch_artifact(wanted, "decision.json", Path(folder)))
    verdict = str(decision.get("verdict", ""))[:MAX_TEXT_LENGTH]
    if decision.get("passed") is not True or not wanted.gate_passed:
        raise PosefoundryError(
            f"Version {wanted.version} of {wanted.model_name!r} cannot be promoted, it did not pass the gate: "
            f"{verdict.rstrip('.')}. Train a better candidate, or change what the gate asks for in params.yaml; then "
            "run the pipeline again."
        )
    return verdict


def _check_why(why: str) -> None:
    if not why.strip() or len(why) > MAX_TEXT_LENGTH:
        raise PosefoundryError(
            f"Expected a reason of 1 to {MAX_TEXT_LENGTH} characters, got {len(why.strip())}. It stays in the history: "
            '--why "better on small persons".'
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_setting(name: str) -> str:
    try:
        done = subprocess.run(["git", "config", name], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
