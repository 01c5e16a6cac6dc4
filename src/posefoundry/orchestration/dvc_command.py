"""DVC's command line in a process that ends with the one that started it, and gets past what a killed one left.

A flow that is killed must not leave a pipeline running: the next one would write into the same folders.
"""

import signal
import sys
from pathlib import Path

from posefoundry.processes import die_with_parent


def forget_locks_of_the_dead(project: Path) -> None:
    """Drops the locks that killed DVC processes left on the pipeline's folders.

    DVC does so by itself, unless the process is dead but not yet reaped, or its number is another program's by now
    (both usual in containers): then it would call the folders busy for ever.
    """
    from dvc.fs import localfs
    from dvc.rwlock import RWLOCK_FILE, _edit_rwlock

    folder = project / ".dvc" / "tmp"
    if not (folder / RWLOCK_FILE).exists():
        return
    with _edit_rwlock(str(folder), localfs, hardlink=False) as locks:
        for owners in locks["read"].values():
            owners[:] = [owner for owner in owners if _runs_dvc(owner["pid"])]
        for path, owner in list(locks["write"].items()):
            if not _runs_dvc(owner["pid"]):
                del locks["write"][path]


def _runs_dvc(pid: int) -> bool:
    import psutil

    try:
        return "dvc" in " ".join(psutil.Process(pid).cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    except psutil.AccessDenied:
        return True


def main() -> int:
    """Runs DVC with this process's arguments in the current folder."""
    die_with_parent()
    # A shell starts its background jobs deaf to the interrupt by which a stage is stopped.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from dvc.cli import main as dvc

    forget_locks_of_the_dead(Path.cwd())
    return dvc(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
