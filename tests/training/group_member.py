"""Run by tests in processes of their own: a process of a training that does nothing but meet the others, five times.

    group_member.py folder fault stall_timeout_s [rank]

Leaves a file `<attempt>_<rank>` with what it knows of itself. `fault` befalls the rank, 1 unless told, before the third
meeting: `sleep`, `freeze`, `kill` (in the first attempt alone), `kill-always`, `explain` (a fault with its message),
`lose-host` (the agent is killed, and its processes with it), `cut-off` (waits until a file `cut` lies in the folder),
`kill-cut-off` (as `kill`; in the second attempt each rank waits for that file when it is about to join the others).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from posefoundry.errors import PosefoundryError
from posefoundry.processes import die_with_parent
from posefoundry.training.distributed import join_process_group, watched


def suffer(fault: str, attempt: int, folder: Path) -> None:
    match fault:
        case "sleep":
            time.sleep(600)
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "kill" | "kill-cut-off" if attempt == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill-always":
            os.kill(os.getpid(), signal.SIGKILL)
        case "lose-host" | "lose-host-once" if fault == "lose-host" or attempt == 0:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        case "cut-off":
            wait_for_cut(folder)
        case "explain":
            raise PosefoundryError("the weights are not there.")


def wait_for_cut(folder: Path) -> None:
    while not (folder / "cut").exists():
        time.sleep(0.05)


def join_when_cut_off(folder: Path) -> None:
    join = dist.init_process_group

    def join_late(*arguments: Any, **named: Any) -> None:
        (folder / f"joining-{os.environ['RANK']}").touch()
        wait_for_cut(folder)
        join(*arguments, **named)

    dist.init_process_group = join_late


def main() -> None:
    die_with_parent()
    folder, fault, timeout_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    victim = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    attempt = len(list(folder.glob(f"*_{victim}")))
    joins_cut_off = fault == "kill-cut-off" and attempt == 1
    if joins_cut_off:
        join_when_cut_off(folder)
    with join_process_group("cpu", timeout_s if joins_cut_off else 60) as group:
        attempts = group.gather([attempt])
        with watched(group, timeout_s):
            for step in range(5):
                group.progress.reach(f"step {step}: preparing")
                if group.rank == victim and step == 2:
                    (folder / f"{max(attempts)}_{victim}").touch()
                    suffer(fault, max(attempts), folder)
                total = group.sum(torch.tensor(float(group.rank + 1)))
        facts = {
            "rank": group.rank,
            "sum": float(total),
            "gathered": group.gather_in_main([group.rank, group.rank + 10]),
            "threads": torch.get_num_threads(),
        }
        (folder / f"{max(attempts)}_{group.rank}").write_text(json.dumps(facts))
    if fault == "slow-end" and group.rank:
        time.sleep(600)


if __name__ == "__main__":
    try:
        main()
    except PosefoundryError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
