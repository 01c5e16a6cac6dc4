"""The ledger of promotions: one record an act, one MLflow run a record, each holding the hash of the one before.

The runs lie in the experiment `<model>-promotions`, so everybody on the same tracking server sees them. A record is
never rewritten, and `history` checks the chain.

Order of writing, so that a kill between two steps leaves a state the next call can read:

1. The record is written (its run is RUNNING): the intent.
2. The alias `previous` moves, then `production`; the registered model notes the head of the chain.
3. The run ends (FINISHED): done.

The next promotion or rollback finds an intent that was never finished, and finishes it: step 2 can be repeated safely.
A run that is KILLED was withdrawn before step 2, because two people acted at once or its version was deleted meanwhile;
it is no part of the chain.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from posefoundry.errors import PosefoundryError
from posefoundry.registry import store
from posefoundry.registry.versions import PREVIOUS, PRODUCTION, aliases_of, list_versions

# How long an unfinished record of somebody else may still be in their hands; moving two aliases takes far less.
PATIENCE_S = 5.0

# A record must fit into one MLflow tag of 5,000 characters, the limit of older servers.
MAX_TEXT_LENGTH = 1000

RECORD, RECORD_HASH, LEDGER_HEAD = "record", "record.sha256", "ledger.head"


@dataclass(frozen=True)
class Record:
    """One promotion or rollback.

    Attributes:
        number: Counts from 1.
        action: `promote` or `rollback`.
        from_version: In production before; None at the first promotion.
        to_version: In production after.
        who: `$POSEFOUNDRY_USER`, else git's user, else the login name.
        why: The reason in words.
        when: UTC, ISO 8601.
        gate_verdict: What the gate said of `to_version`.
        compared_with: The version that the gate compared `to_version` with; None for none.
        notes: What deserved a warning at the time.
        previous_record: Hash of the record before; None for the first.
    """

    number: int
    action: str
    model_name: str
    from_version: str | None
    to_version: str
    who: str
    why: str
    when: str
    gate_verdict: str
    compared_with: str | None
    notes: tuple[str, ...]
    previous_record: str | None

    def to_json(self) -> str:
        """Returns the one text that the hash is taken of."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """The record's hash, which the next record holds."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Reads what `to_json` wrote."""
        content = json.loads(text)
        return cls(**{**content, "notes": tuple(content["notes"])})


@dataclass(frozen=True)
class Entry:
    """A record as it lies in the ledger."""

    run_id: str
    record: Record
    stated_sha256: str
    finished: bool


@dataclass(frozen=True)
class History:
    """The ledger, oldest record first, and what is wrong with it."""

    records: tuple[Record, ...]
    problems: tuple[str, ...] = ()


def last_record(model_name: str) -> tuple[Record | None, Record | None]:
    """Reads the end of the ledger, and finishes it first where it was begun and left.

    A living author gets the time to finish it himself.

    Returns:
        The last record, and that same record if it was finished here.
    """
    client = store.client()
    deadline = time.monotonic() + PATIENCE_S
    entries = _entries(client, model_name)
    while entries and not entries[-1].finished:
        if time.monotonic() >= deadline:
            if _versions_exist(entries[-1].record):
                _move_aliases(client, entries[-1])
                return entries[-1].record, entries[-1].record
            client.set_terminated(entries[-1].run_id, "KILLED")
        time.sleep(0.2)
        entries = _entries(client, model_name)
    return (entries[-1].record if entries else None), None


def act(record: Record) -> None:
    """Writes a record and does what it says.

    Raises:
        PosefoundryError: Somebody else was quicker; nothing was moved.
    """
    client = store.client()
    run = client.create_run(
        store.experiment_id(f"{record.model_name}-promotions"),
        run_name=f"{record.number}: {record.action} {record.from_version or 'nothing'} -> {record.to_version}",
        tags={
            RECORD: record.to_json(),
            RECORD_HASH: record.sha256,
            "mlflow.note.content": f"{record.who}: {record.why}",
        },
    )
    # Two people may have read the same ledger. Whoever finds a rival here withdraws; whoever came first found none.
    if len([entry for entry in _entries(client, record.model_name) if entry.record.number >= record.number]) > 1:
        client.set_terminated(run.info.run_id, "KILLED")
        raise PosefoundryError(
            f"Somebody else is promoting {record.model_name!r} at this moment; this {record.action} was withdrawn. "
            "Look at `posefoundry history` and try again."
        )
    _move_aliases(client, Entry(run.info.run_id, record, record.sha256, finished=False))


@store.faults_explained
def history(model_name: str) -> History:
    """Reads the ledger and checks it: every hash, every link, its end, and the alias against the last record."""
    client = store.client()
    entries = _entries(client, model_name)
    problems = _chain_problems(entries)
    done = [entry for entry in entries if entry.finished]
    if unfinished := [entry.record.number for entry in entries if not entry.finished]:
        problems.append(f"record {unfinished[0]} was begun and not finished; the next promote or rollback finishes it")
    else:
        head = _head(client, model_name)
        last = f"{done[-1].record.number}:{done[-1].record.sha256}" if done else None
        if head != last:
            problems.append(
                f"the model names record {(head or 'none').partition(':')[0]} as the last one, the ledger ends with "
                f"{done[-1].record.number if done else 'none'}: records were removed or added"
            )
        production = aliases_of(client, model_name).get(PRODUCTION)
        recorded = done[-1].record.to_version if done else None
        if production != recorded:
            problems.append(
                f"{in_words(production)} is in production, but the last record put {in_words(recorded)} there: the "
                "alias was moved without a record"
            )
    return History(tuple(entry.record for entry in entries), tuple(problems))


def _move_aliases(client: Any, entry: Entry) -> None:
    """Does what a record says. Doing it twice is doing it once."""
    record = entry.record
    if record.from_version is not None:
        client.set_registered_model_alias(record.model_name, PREVIOUS, record.from_version)
    client.set_registered_model_alias(record.model_name, PRODUCTION, record.to_version)
    client.set_registered_model_tag(record.model_name, LEDGER_HEAD, f"{record.number}:{record.sha256}")
    client.set_terminated(entry.run_id, "FINISHED")


def _versions_exist(record: Record) -> bool:
    known = {entry.version for entry in list_versions(record.model_name)}
    return record.to_version in known and (record.from_version is None or record.from_version in known)


def _entries(client: Any, model_name: str) -> list[Entry]:
    """Reads the chain in order; withdrawn records are left out, and deleting a run in the UI does not hide it."""
    experiment = client.get_experiment_by_name(f"{model_name}-promotions")
    if experiment is None:
        return []
    from mlflow.entities import ViewType

    entries, token = [], None
    while True:
        page = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL, page_token=token)
        for run in page:
            if run.info.status in ("RUNNING", "FINISHED") and RECORD in run.data.tags:
                record = _read_record(run)
                entries.append(
                    Entry(run.info.run_id, record, run.data.tags.get(RECORD_HASH, ""), run.info.status == "FINISHED")
                )
        token = page.token
        if not token:
            return sorted(entries, key=lambda entry: (entry.record.number, entry.record.when))


def _read_record(run: Any) -> Record:
    try:
        return Record.from_json(run.data.tags[RECORD])
    except (ValueError, KeyError, TypeError) as error:
        raise PosefoundryError(
            f"MLflow: expected a promotion record in run {run.info.run_id} ({run.info.run_name}), got other text: "
            f"{error}. It was altered by hand; restore the run's tag {RECORD!r} from a backup of the database."
        ) from None


def _chain_problems(entries: list[Entry]) -> list[str]:
    problems: list[str] = []
    before: Record | None = None
    for entry in entries:
        record = entry.record
        if record.sha256 != entry.stated_sha256:
            problems.append(f"record {record.number} was altered: its hash is not the one it was written with")
        expected_number = before.number + 1 if before else 1
        if record.number != expected_number:
            problems.append(f"expected record {expected_number}, found {record.number}: records were removed or added")
        elif record.previous_record != (before.sha256 if before else None):
            problems.append(f"record {record.number} does not follow record {record.number - 1} as that reads today")
        if before and record.from_version != before.to_version:
            problems.append(
                f"record {record.number} found {in_words(record.from_version)} in production, where record "
                f"{before.number} had put {in_words(before.to_version)}: the alias was moved without a record"
            )
        before = record
    return problems


def _head(client: Any, model_name: str) -> str | None:
    mlflow = store.import_mlflow()
    try:
        return client.get_registered_model(model_name).tags.get(LEDGER_HEAD)
    except mlflow.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def in_words(version: str | None) -> str:
    """Returns `version 3`, or `nothing`."""
    return "nothing" if version is None else f"version {version}"
