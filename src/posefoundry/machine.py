"""What machine this is."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """Returns the processor's name, for reports."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
