"""Promotion from Prefect's UI: a person starts the deployment `by-hand` with a version and a reason.

It does what `posefoundry promote` does, for those who have the server but not the machine.
"""

import contextlib
from pathlib import Path

from posefoundry.orchestration.environment import prepare_prefect

PROJECT = Path(__file__).resolve().parents[1]
prepare_prefect(PROJECT)

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from posefoundry.errors import PosefoundryError
from posefoundry.params import load_params
from posefoundry.registry import promotion


@flow(name="promote")
def promote(version: str | int, why: str, who: str, project: str | None = None) -> State:
    """Puts a version that passed its gate into production and keeps the one that was there as `previous`.

    Args:
        version: A number, or an alias such as `candidate`.
        why: The reason, which goes into the record.
        who: The person who decides; the worker's own account would say nothing.
        project: The checkout whose registry is meant; by default the one this file lies in.
    """
    root = Path(project) if project else PROJECT
    try:
        with contextlib.chdir(root):
            model_name = load_params(root / "params.yaml").register_.model_name
            record = promotion.promote(model_name, str(version), why=why, who=who).record
    except PosefoundryError as error:
        return Failed(name="Refused", message=str(error))
    for note in record.notes:
        get_run_logger().warning(note)
    before = f"version {record.from_version}" if record.from_version else "nothing"
    sentence = f"{record.who} put version {record.to_version} of {record.model_name} into production; before: {before}."
    create_markdown_artifact(key="promotion", markdown=f"{sentence}\n\nWhy: {record.why}\n\n{record.gate_verdict}")
    return Completed(message=sentence)
