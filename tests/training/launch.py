"""Run by tests in a process of its own: starts a command once a process, as the train stage does.

launch.py settings.json command...; the time limits of the launcher are those of a test.
"""

import os
import sys
from pathlib import Path

from torch.distributed.elastic.rendezvous.utils import _PeriodicTimer

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError
from posefoundry.training import launch

launch.JOIN_TIMEOUT_S = int(os.environ.get("TEST_JOIN_TIMEOUT_S", "10"))
launch.ANSWER_TIMEOUT_S = 4.0
launch.LAST_WORDS_S = 3.0

if heartbeat_s := os.environ.get("TEST_HEARTBEAT_S"):
    start = _PeriodicTimer.start

    def start_fast(timer: _PeriodicTimer) -> None:
        timer._ctx.interval = float(heartbeat_s)
        start(timer)

    _PeriodicTimer.start = start_fast  # type: ignore[method-assign]

if __name__ == "__main__":
    try:
        launch.run_processes(sys.argv[2:], Train.model_validate_json(Path(sys.argv[1]).read_text()))
    except PosefoundryError as error:
        print(f"launch: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
