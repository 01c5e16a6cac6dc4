"""How a stage becomes a command: arguments from its signature, parameters from its section, faults as messages."""

import argparse
import inspect
import os
from collections.abc import Callable
from pathlib import Path

from posefoundry.errors import told_in_a_message
from posefoundry.params import load_params

# Nothing in the pipeline may wait for the network or report home, whatever a library's own default is.
OFFLINE_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def run_as_command(stage: str, run: Callable[..., None]) -> None:
    """Runs a stage from the command line and ends the process with its exit status.

    `run(settings, other_stage, ..., *, name: Path, ...)` gets its own section of the parameters, the section of each
    other stage that a further positional argument is named after, and one `--name PATH` for each keyword argument,
    which dvc.yaml states. Exit status: 0 done, else as `told_in_a_message` says.
    """
    for name, value in OFFLINE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    parser = argparse.ArgumentParser(prog=f"python -m posefoundry.stages.{stage}", description=run.__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters (params.yaml)")
    signature = inspect.signature(run).parameters
    paths = [name for name, parameter in signature.items() if parameter.kind is parameter.KEYWORD_ONLY]
    other_stages = [name for name in signature if name not in paths][1:]
    for name in paths:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True, dest=name)
    arguments = parser.parse_args()
    with told_in_a_message(stage):
        params = load_params(arguments.params)
        sections = [params.section(name) for name in (stage, *other_stages)]
        run(*sections, **{name: getattr(arguments, name) for name in paths})
