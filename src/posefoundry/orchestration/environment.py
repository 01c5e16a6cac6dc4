"""What Prefect must find in the environment before it is imported."""

import os
from pathlib import Path

from posefoundry.stages.runner import OFFLINE_ENVIRONMENT

SERVER_STARTUP_LIMIT_S = 120  # of the server that a flow without one starts for itself; 10 to 16 s on two idle cores


def prepare_prefect(project: Path) -> None:
    """Lets flows run with no server configured, keep their records in the project and report to nobody.

    What is already set stays: PREFECT_API_URL sends the runs to a server, PREFECT_HOME keeps the records elsewhere.
    """
    for name, value in {
        **OFFLINE_ENVIRONMENT,
        "PREFECT_HOME": str(project / ".prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(SERVER_STARTUP_LIMIT_S),
    }.items():
        os.environ.setdefault(name, value)
