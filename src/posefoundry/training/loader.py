"""The loader: batches from worker processes that start once, share the decoded images, and end with the training.

Workers are started afresh, not forked: a fork of a process that has threads (those of OpenCV, MLflow, torch) inherits
locks that nobody will ever open. They don't import the program's main module either, so that a script without
`if __name__ == "__main__"` can train too.
"""

import math
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError
from posefoundry.machine import usable_cores
from posefoundry.processes import die_with_parent
from posefoundry.training.batch import Batch, collate
from posefoundry.training.data import ShuffledBatches, TrainingImages, batch_sides_px
from posefoundry.values import AUTO_WORKERS

BATCHES_AHEAD = 4  # a worker, at most
# Of all workers of a process, or a batch each where that is more: at 640 px 1.2 GiB of /dev/shm and, for a GPU, as much
# page-locked memory. 16 workers with 4 batches each would take tens of GiB of both where batches are large.
IMAGES_AHEAD = 1024
MOST_AUTO_WORKERS = 16  # each prepares some 160 images of 640 px a second and takes a quarter GiB
SHARED_MEMORY = Path("/dev/shm")


class WorkerContext(multiprocessing.context.SpawnContext):
    """Starts processes that don't import the main module."""

    class Process(multiprocessing.context.SpawnProcess):
        """A process whose target needs nothing of the main module."""

        def start(self) -> None:
            """Starts it."""
            with _without_main_module():
                super().start()
            # At its exit Python sends SIGTERM to daemons and waits for them, but these ignore it; see `_Begin`.
            self._popen.terminate = self._popen.kill  # type: ignore[attr-defined]


def training_loader(images: TrainingImages, settings: Train, rank: int, device: torch.device) -> DataLoader[Batch]:
    """Returns the loader of this process; set `loader.batch_sampler.epoch` before each epoch.

    Raises:
        PosefoundryError: The shared memory is too small for the batches that the workers hold ready.
    """
    sides_px = batch_sides_px(settings)
    sampler = ShuffledBatches(len(images), settings.batch_size, settings.seed, rank, settings.total_processes, sides_px)
    n_workers = n_loader_workers(settings, device, rank)
    common: dict[str, Any] = {
        "batch_sampler": sampler,
        "collate_fn": collate,
        "pin_memory": device.type == "cuda",
        # Of its own, so that how often the loader draws its seeds changes nothing else that is random.
        "generator": torch.Generator().manual_seed(settings.seed),
    }
    if n_workers == 0:
        cv2.setNumThreads(torch.get_num_threads())  # this process's share of the cores
        return DataLoader(images, **common)  # type: ignore[arg-type]
    _check_shared_memory(settings, n_workers)
    return DataLoader(
        images,  # type: ignore[arg-type]
        **common,
        num_workers=n_workers,
        persistent_workers=True,
        prefetch_factor=_batches_ahead(settings, n_workers),
        multiprocessing_context=WorkerContext(),
        worker_init_fn=_Begin(os.getpid()),
    )


def n_loader_workers(settings: Train, device: torch.device, rank: int) -> int:
    """Returns how many workers one process has; `auto` gives a GPU those cores that its process leaves free.

    On a CPU they would take the model's cores. Where /dev/shm has too little room for so many, `auto` takes fewer, and
    rank 0 says so.
    """
    if settings.loader_workers != AUTO_WORKERS:
        return settings.loader_workers
    if device.type != "cuda":
        return 0
    free = _free_shared_memory_bytes()
    wanted = max(0, min(MOST_AUTO_WORKERS, usable_cores() // settings.processes - 1))
    n_workers = next((n for n in range(wanted, 0, -1) if _bytes_held(settings, n) <= free), 0)
    if n_workers < wanted and rank == 0:
        print(
            f"{SHARED_MEMORY}: expected {_bytes_held(settings, wanted) / 2**20:.0f} MiB free for the batches that "
            f"{wanted} workers a process hold ready, got {free / 2**20:.0f}: train.loader_workers auto takes "
            f"{n_workers} instead of {wanted}. Give the container more (docker run --shm-size).",
            file=sys.stderr,
        )
    return n_workers


def batches(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Hands on the loader's batches; what a worker meets is told as if the training process had met it.

    Raises:
        PosefoundryError: An image or its labels cannot be read.
    """
    try:
        yield from loader
    except PosefoundryError as error:  # a worker's comes with the lines of code that it went through
        raise PosefoundryError(str(error).rpartition("PosefoundryError: ")[2].strip()) from None


def _batches_ahead(settings: Train, n_workers: int) -> int:
    """Returns how many batches each of a process's workers prepares ahead: at least one, and fewer of large ones."""
    return max(1, min(BATCHES_AHEAD, IMAGES_AHEAD // (n_workers * _share(settings))))


def _share(settings: Train) -> int:
    """Returns how many images of a batch are one process's."""
    return -(-settings.batch_size // settings.total_processes)


def _bytes_held(settings: Train, n_workers: int) -> int:
    """Returns what all processes of this host hold ready in /dev/shm with so many workers each."""
    n_images = n_workers * _batches_ahead(settings, n_workers) * _share(settings)
    return settings.processes * n_images * 3 * max(batch_sides_px(settings)) ** 2


def _free_shared_memory_bytes() -> float:
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else math.inf


class _Begin:
    """What a worker does first."""

    def __init__(self, parent: int) -> None:
        self.parent = parent

    def __call__(self, worker: int) -> None:
        die_with_parent()
        if os.getppid() != self.parent:
            sys.exit(1)
        # Those who interrupt a training signal all its processes; the loader is needed until the last step is saved.
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, signal.SIG_IGN)
        cv2.setNumThreads(1)


def _check_shared_memory(settings: Train, n_workers: int) -> None:
    """A full /dev/shm kills a worker by SIGBUS, which tells nobody anything; containers have 64 MB by default."""
    held, free = _bytes_held(settings, n_workers), _free_shared_memory_bytes()
    if held > free:
        raise PosefoundryError(
            f"{SHARED_MEMORY}: expected {held / 2**20:.0f} MiB free for the batches that train.loader_workers hold "
            f"ready, got {free / 2**20:.0f}. Give the container more (docker run --shm-size) or "
            "lower train.loader_workers."
        )


@contextmanager
def _without_main_module() -> Iterator[None]:
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
