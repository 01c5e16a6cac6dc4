"""What machine this is, and what cores and memory it has."""

import os
import platform
import resource
import sys
from pathlib import Path

# Of cgroups 2 and 1: a container's bound on memory, what it has taken, and what of that are files it can let go of.
CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def cpu_name() -> str:
    """Returns the processor's name, for reports."""
    lines = _lines(Path("/proc/cpuinfo"))
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def usable_cores() -> int:
    """Returns how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """Returns the most main memory that this process has had so far."""
    # What the system counts for the process begins, on Linux, with what the one had that started it.
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory_bytes(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the main memory that may still be taken: of the machine, or of this container where that is less."""
    import psutil

    free = [psutil.virtual_memory().available]
    for bound, taken, statistics, kept in CGROUPS:
        try:
            lines = (cgroups / statistics).read_text().splitlines()
            inactive = next(int(line.split()[1]) for line in lines if line.startswith(f"{kept} "))
            free.append(int((cgroups / bound).read_text()) - int((cgroups / taken).read_text()) + inactive)
        except (OSError, ValueError, StopIteration):  # no such cgroup, or no bound ("max")
            continue
    return max(0, min(free))


def _lines(file: Path) -> list[str]:
    """Returns what Linux tells in a file; nothing elsewhere."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
