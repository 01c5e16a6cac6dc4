"""The spine, one file a stage: from ingest, convert, validate and train to export, benchmark, release and register.

A stage that DVC runs ends when DVC is killed, so that no orphan writes into what the next run makes. This is seen to
here, where every stage begins, and not later: a stage's own imports take seconds.
"""

import os

from posefoundry.processes import die_with_parent

if "DVC_STAGE" in os.environ:
    die_with_parent()
