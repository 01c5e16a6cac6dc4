"""The spine, one file a stage: from ingest, convert, validate and train to export, benchmark, release and register.

A stage that DVC runs ends when DVC is killed, and a process that a stage starts as one of several ends with that stage,
so that no orphan writes into what the next run makes. This is seen to here, where every stage begins, and not later: a
stage's own imports take seconds. A stage that has something to save asks for time to do so, `stop_with_dvc`.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from posefoundry.processes import die_with_parent, die_with_starter, stop_with_parent

# Lies beside the last checkpoint of a training that has ended, until what it made is known to be recorded.
FINISHED = "finished"

_is_one_of_several = die_with_starter()
if not _is_one_of_several and "DVC_STAGE" in os.environ:
    die_with_parent()


def stop_with_dvc() -> None:
    """Lets DVC's end be a SIGTERM for this stage, soon followed by SIGKILL; does nothing in one of its processes."""
    if not _is_one_of_several and "DVC_STAGE" in os.environ:
        stop_with_parent()


def forget_finished_trainings(checkpoints: Path) -> None:
    """Removes the last checkpoints of trainings that have ended."""
    for mark in checkpoints.glob(f"*/{FINISHED}"):
        shutil.rmtree(mark.parent, ignore_errors=True)
    with suppress(OSError):  # others lie there, or it is a link or a disk of its own
        checkpoints.rmdir()
