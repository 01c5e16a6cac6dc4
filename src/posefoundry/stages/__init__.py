"""The spine, one file a stage: from ingest, convert, validate and train to export, benchmark, release and register.

A stage that DVC runs ends when DVC is killed, and a process that a stage starts as one of several ends with that stage,
so that no orphan writes into what the next run makes. This is seen to here, where every stage begins, and not later: a
stage's own imports take seconds. A stage that has something to save asks for time to do so, `stop_with_dvc`.
"""

import os
import sys

from posefoundry.processes import die_with_parent, stop_with_parent

# Tells a stage's processes which process starts them.
STARTED_BY = "POSEFOUNDRY_STARTED_BY"

_parent = os.environ.pop(STARTED_BY, None)
if _parent is not None or "DVC_STAGE" in os.environ:
    die_with_parent()
if _parent is not None and os.getppid() != int(_parent):  # gone before it could be asked for
    sys.exit(1)


def stop_with_dvc() -> None:
    """Lets DVC's end be a SIGTERM for this stage, soon followed by SIGKILL; does nothing in one of its processes."""
    if _parent is None and "DVC_STAGE" in os.environ:
        stop_with_parent()
