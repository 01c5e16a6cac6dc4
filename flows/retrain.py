"""Brings the pipeline up to date: `python flows/retrain.py`, or on a schedule by the deployment in prefect.yaml.

Each stage of dvc.yaml is one task, in DVC's order, run by DVC: what has not changed shows as Cached.
Exit status: 0 all stages have their result, 1 a stage failed, 2 the project cannot be read, 3 a gate said no.
"""

import argparse
import logging
import signal
import sys
import time
from pathlib import Path

from posefoundry.orchestration.environment import prepare_prefect

PROJECT = Path(__file__).resolve().parents[1]
prepare_prefect(PROJECT)

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import FailedRun
from prefect.states import Completed, Failed

from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.orchestration.dvc_graph import (
    Outcome,
    PipelineStage,
    StageFailedError,
    read_pipeline,
    run_stage,
    sole_run,
)
from posefoundry.orchestration.summary import StageRecord, summarise
from posefoundry.orchestration.verdict import GATE, why_outdated
from posefoundry.params import load_params


@flow(name="retrain")
def retrain(project: str | None = None) -> State:
    """Runs what has changed, from data to a registered version, and writes a summary of it.

    Args:
        project: The checkout to work in; by default the one this file lies in.
    """
    root = Path(project) if project else PROJECT
    logger = get_run_logger()
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(_no_traceback_of_a_state)
    with sole_run(root, on_wait=lambda: logger.info("Another retraining works in %s: waiting for its end.", root)):
        try:
            load_params(root / "params.yaml")
            stages = read_pipeline(root)
        except PosefoundryError as error:
            return Failed(name="Misconfigured", message=str(error))
        records = _run_in_order(stages, root)
        create_markdown_artifact(key="retrain-summary", markdown=summarise(records, root), description="Retraining")
    return _final_state(records)


def _run_in_order(stages: list[PipelineStage], project: Path) -> list[StageRecord]:
    """Runs each stage whose needs have their result; Prefect marks the others NotReady."""
    states: dict[str, State] = {}
    records = []
    for stage in stages:
        run_this = run_by_dvc.with_options(
            name=stage.name,
            task_run_name=stage.name,
            retries=stage.policy.retries,
            retry_delay_seconds=stage.policy.retry_delay_s,
        )
        began = time.monotonic()
        states[stage.name] = state = run_this(
            stage, project, wait_for=[states[need] for need in stage.needs], return_state=True
        )
        records.append(StageRecord(stage.name, state.name or "", state.message or "", time.monotonic() - began))
    return records


@task(cache_policy=NO_CACHE, retry_condition_fn=lambda _task, _run, state: state.name != "Rejected")
def run_by_dvc(stage: PipelineStage, project: Path) -> State:
    """One stage, its lines in the run's log. Failures are states, so that nobody reads a traceback for a message."""
    logger = get_run_logger()
    outdated = _why_outdated(project) if stage.name == GATE else None
    try:
        outcome = run_stage(
            stage.name,
            project=project,
            on_line=lambda line: logger.info(line),
            time_limit_s=stage.policy.time_limit_s,
            force=outdated is not None,
        )
    except RejectedError as verdict:
        return Failed(name="Rejected", message=str(verdict))
    except StageFailedError as error:
        return Failed(message=str(error))
    if outcome is Outcome.RAN:
        return Completed(message=f"decided anew: {outdated}" if outdated else None)
    return Completed(name="Cached", message="unchanged" if outcome is Outcome.CACHED else "restored from the run cache")


def _why_outdated(project: Path) -> str | None:
    """Why the gate's verdict is about another model than the one in production; a registry away is no reason."""
    try:
        return why_outdated(project)
    except PosefoundryError as error:
        get_run_logger().warning("Whether the gate compared with the model in production cannot be told. %s", error)
        return None


def _final_state(records: list[StageRecord]) -> State:
    """The flow's own state: Rejected for a gate's no, Cached where nothing had changed."""
    for name in ("Failed", "Rejected"):
        for record in records:
            if record.state == name:
                return Failed(name=name, message=f"{record.name}: {record.message}")
    if all(record.state == "Cached" for record in records):
        return Completed(name="Cached", message="nothing has changed")
    for record in records:
        if record.state not in ("Completed", "Cached"):
            return Failed(message=f"{record.name}: {record.state}. {record.message}")
    return Completed(message="every stage has its result")


def _no_traceback_of_a_state(record: logging.LogRecord) -> bool:
    """Lets pass all but what Prefect logs when a run returns a failed state: a traceback of nothing the code raised."""
    raised = record.exc_info[0] if record.exc_info else BaseException
    return raised not in (None, FailedRun)


def main() -> int:
    """Runs the flow here and now; returns the exit status."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    # Prefect hands the signal on when the flow has ended; by default that would leave its temporary server behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        state = retrain(return_state=True)
    except KeyboardInterrupt:
        print("Interrupted: the running stage was stopped; the next run takes up from there.", file=sys.stderr)
        return 130
    print(f"{state.name}: {state.message}", file=sys.stderr)
    return {"Completed": 0, "Cached": 0, "Misconfigured": 2, "Rejected": 3}.get(state.name or "", 1)


if __name__ == "__main__":
    sys.exit(main())
