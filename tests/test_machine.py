"""What memory a machine or its container has left."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from posefoundry.machine import CGROUPS, cpu_name, free_memory_bytes, peak_memory_bytes


def container(folder: Path, version: int, bound: str, taken: int, kept: int) -> Path:
    names = dict(zip(("bound", "taken", "statistics", "kept"), CGROUPS[2 - version], strict=True))
    for name, text in (("bound", bound), ("taken", str(taken)), ("statistics", f"anon 1\n{names['kept']} {kept}\n")):
        (folder / names[name]).parent.mkdir(exist_ok=True)
        (folder / names[name]).write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_its_bound_without_what_it_took_but_with_the_files_it_keeps(
    tmp_path: Path, version: int
) -> None:
    assert free_memory_bytes(container(tmp_path, version, "5000", taken=3000, kept=400)) == 2400


@pytest.mark.parametrize("bound", ["max", str(2**63 - 4096)])
def test_without_a_bound_the_machine_counts(tmp_path: Path, bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free = psutil.virtual_memory()._replace(available=123_456)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert free_memory_bytes(container(tmp_path, 2, bound, taken=3000, kept=0)) == 123_456
    assert free_memory_bytes(tmp_path / "no cgroups") == 123_456


def test_a_container_that_is_full_has_nothing(tmp_path: Path) -> None:
    assert free_memory_bytes(container(tmp_path, 2, "5000", taken=6000, kept=0)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_process_is_not_charged_with_what_its_parent_had() -> None:
    large = np.ones(2**25)  # 256 MiB
    command = [sys.executable, "-c", "from posefoundry.machine import peak_memory_bytes; print(peak_memory_bytes())"]
    assert int(subprocess.check_output(command)) < large.nbytes < peak_memory_bytes()


def test_this_process_has_taken_more_than_its_libraries_and_less_than_there_is() -> None:
    assert 2**23 < peak_memory_bytes() < psutil.virtual_memory().total


def test_the_processor_has_a_name() -> None:
    assert cpu_name()
