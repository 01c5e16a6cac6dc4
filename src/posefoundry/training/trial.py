"""Small batches trained on for a trial, to see how much memory they take."""

import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

import numpy as np
import torch

from posefoundry.config import Train
from posefoundry.datasets.yolo import DatasetSpec
from posefoundry.machine import peak_memory_bytes
from posefoundry.models import build_model
from posefoundry.processes import die_with_parent
from posefoundry.training.batch import Batch, Sample, collate
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.loader import WorkerContext
from posefoundry.training.loop import Trainer
from posefoundry.training.losses import build_criterion

PERSONS_AN_IMAGE = 32
NO_MEMORY = "can't allocate memory"  # PyTorch has no exception of its own for it on CPUs


def peak_bytes_on_gpu(n_images: int, settings: Train, spec: DatasetSpec, device: torch.device) -> int:
    """Returns the most GPU memory that training on a batch takes, the model, its average and the optimiser included.

    Raises:
        RuntimeError: It is more than there is (`is_of_memory`), or the training fails otherwise.
    """
    forget_what_was_tried(device)
    before = torch.cuda.memory_reserved(device)
    train_on_noise(n_images, settings, spec, device)
    return torch.cuda.max_memory_reserved(device) - before


def forget_what_was_tried(device: torch.device) -> None:
    """Frees what a batch took on a GPU, also what lies in cycles, so that nothing of it is charged to what follows."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def peak_bytes_on_cpu(settings: Train, spec: DatasetSpec) -> Iterator[Callable[[int], int]]:
    """Gives what returns the most memory that a process took to train on a batch, itself included.

    A process of its own trains, so that the memory is given back, and so that Linux, where it is too much, ends that
    process and not this one. To be asked for ever larger batches; raises `torch.OutOfMemoryError` as a GPU does.
    """
    ours, its = WorkerContext().Pipe()
    trial = WorkerContext().Process(target=_try_on_cpu, args=(its, settings, spec, torch.get_num_threads()))
    trial.start()
    its.close()

    def peak_bytes(n_images: int) -> int:
        try:
            ours.send(n_images)
            peak = ours.recv()
        except (EOFError, ConnectionError):
            trial.join()
            if trial.exitcode == -signal.SIGKILL:  # so Linux ends what takes too much
                raise torch.OutOfMemoryError from None
            raise RuntimeError(f"trying a batch of {n_images} images ended with exit code {trial.exitcode}") from None
        if isinstance(peak, Exception):
            raise peak
        return peak

    try:
        yield peak_bytes
    finally:
        ours.close()
        trial.kill()
        trial.join()


def _try_on_cpu(asked: Connection, settings: Train, spec: DatasetSpec, n_threads: int) -> None:
    """Trains on batches of the sizes asked for; answers each with the most memory taken so far, or with what failed."""
    die_with_parent()
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # who asked gets it too, and ends this process
        signal.signal(signal_number, signal.SIG_IGN)
    torch.set_num_threads(n_threads)
    with suppress(EOFError, ConnectionError):  # nobody asks any more
        while n_images := asked.recv():
            try:
                train_on_noise(n_images, settings, spec, torch.device("cpu"))
                asked.send(peak_memory_bytes())
            except Exception as error:
                too_much = isinstance(error, MemoryError) or NO_MEMORY in str(error)
                asked.send(torch.OutOfMemoryError() if too_much else RuntimeError(f"{type(error).__name__}: {error}"))


def train_on_noise(n_images: int, settings: Train, spec: DatasetSpec, device: torch.device) -> Trainer:
    """Trains two steps on a batch of the largest images that the settings allow, each with many persons."""
    model = build_model(settings.model, n_classes=len(spec.class_names), kpt_shape=spec.kpt_shape)
    stride_px = max(model.strides)
    side_px = settings.image_size_px * (1 + settings.augment.multi_scale_fraction) // stride_px * stride_px
    batch = collate([_crowd(int(side_px), spec, np.random.default_rng(0))] * n_images)
    alone = settings.model_copy(update={"batch_size": n_images, "processes": 1, "nodes": 1, "compile": False})
    group = ProcessGroup(rank=0, n_processes=1, device=device)
    criterion = build_criterion(model, spec.skeleton, alone, group.sum, spec.class_names)
    loader: list[Batch] = [batch, batch]
    trainer = Trainer(model, alone, criterion, loader, group)  # type: ignore[arg-type]  # asked for its length alone
    for batch in loader:
        trainer.train_step(batch)
    return trainer


def _crowd(side_px: int, spec: DatasetSpec, random: np.random.Generator) -> Sample:
    """Draws noise with persons of all sizes in it."""
    n_keypoints = spec.kpt_shape[0]
    corners_xyxy = np.sort(random.uniform(0, side_px, (PERSONS_AN_IMAGE, 2, 2)), axis=1).reshape(-1, 4)
    keypoints_xy = random.uniform(
        corners_xyxy[:, None, :2], corners_xyxy[:, None, 2:], (PERSONS_AN_IMAGE, n_keypoints, 2)
    )
    return Sample(
        image_rgb=random.integers(0, 255, (side_px, side_px, 3), np.uint8),
        class_ids=np.zeros(PERSONS_AN_IMAGE, np.int64),
        boxes_xyxy=corners_xyxy.astype(np.float32),
        keypoints_xyv=np.concatenate((keypoints_xy, np.full((*keypoints_xy.shape[:2], 1), 2.0)), 2).astype(np.float32),
    )
