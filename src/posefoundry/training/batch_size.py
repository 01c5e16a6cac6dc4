"""`batch_size: auto`: the largest batch that a GPU's memory holds, found by training on a few small ones."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from posefoundry.config import AUTO_BATCH, Train
from posefoundry.datasets.yolo import DatasetSpec, image_files, read_dataset_yaml
from posefoundry.errors import PosefoundryError
from posefoundry.models import build_model
from posefoundry.training.batch import Batch, Sample, collate
from posefoundry.training.checkpoint import CheckpointFolder
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.loop import Trainer
from posefoundry.training.losses import build_criterion

# Without a GPU more images at once are no faster; this many are what the published recipes use on small machines.
CPU_BATCH = 16
# The rest is for batches more crowded than those tried, for validation, and for what the allocator cannot use.
SHARE_OF_FREE_MEMORY = 0.7
PERSONS_AN_IMAGE = 32
TRIED = (2, 4, 8, 16, 32)
MULTIPLE_OF = 8
# However much memory there is: an epoch of fewer steps teaches little.
LEAST_STEPS_AN_EPOCH = 20


def with_batch_that_fits(settings: Train, group: ProcessGroup, dataset_yaml: Path) -> Train:
    """Returns the settings with a number for `batch_size: auto`, the same in all processes.

    Args:
        settings: Section `train`; returned as they are where `batch_size` is a number.
        group: This process among its peers, each of which tries its own device.
        dataset_yaml: The data set to be learnt.

    Raises:
        PosefoundryError: Not even one image fits.
    """
    if settings.batch_size != AUTO_BATCH:
        return settings
    spec = read_dataset_yaml(dataset_yaml)
    if group.device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(group.device)
        own = largest_that_fits(lambda n: _peak_bytes(n, settings, spec, group.device), free_bytes)
        _forget_what_was_tried(group.device)
        most = len(image_files(spec.splits["train"])) // (LEAST_STEPS_AN_EPOCH * group.n_processes)
        batch_size = group.n_processes * rounded(min([*group.gather([own]), max(1, most)]))
        why = f"fit in {SHARE_OF_FREE_MEMORY:.0%} of the {free_bytes / 2**30:.1f} GiB free on {group.device}"
    else:
        batch_size = group.n_processes * max(1, CPU_BATCH // group.n_processes)
        why = "are the choice on CPUs, which is not measured"
    if group.is_main:
        print(f"train.batch_size auto: batches of {batch_size} images {why}.")
    return settings.model_copy(update={"batch_size": batch_size})


def with_batch_so_far(settings: Train, checkpoints: CheckpointFolder, group: ProcessGroup) -> Train:
    """Returns the settings with the batch that `batch_size: auto` found before a training was cut short, if it was.

    What is free on a GPU differs from one moment to the next, and another batch would make it another training.

    Args:
        settings: Section `train`; returned as they are where `batch_size` is a number, or there is no checkpoint.
        checkpoints: Of this training; the main process's count.
        group: This process among its peers.

    Raises:
        PosefoundryError: The processes, now of another number, cannot share that batch.
    """
    if settings.batch_size != AUTO_BATCH:
        return settings
    so_far = group.from_main(checkpoints.fact("batch_size") if group.is_main else None)
    if so_far is None:
        return settings
    if so_far % settings.total_processes:
        raise PosefoundryError(
            f"train.batch_size auto: {checkpoints.path} is of batches of {so_far} images, expected a multiple of "
            f"{settings.total_processes} processes. Train with as many processes as before, or delete that folder."
        )
    return settings.model_copy(update={"batch_size": so_far})


def largest_that_fits(peak_bytes: Callable[[int], int], free_bytes: int) -> int:
    """Returns how many images fit, by the straight line through the two largest batches that were tried.

    Args:
        peak_bytes: Trains on so many images and returns the most memory that took; raises
            `torch.OutOfMemoryError` where that is more than there is.
        free_bytes: What there is, of which `SHARE_OF_FREE_MEMORY` is to be used.

    Raises:
        PosefoundryError: One image takes more.
    """
    limit = SHARE_OF_FREE_MEMORY * free_bytes
    peaks: dict[int, int] = {}
    try:
        for n_images in TRIED:
            peaks[n_images] = peak_bytes(n_images)
            if peaks[n_images] > limit:
                break
    except torch.OutOfMemoryError:
        pass
    if len(peaks) < 2:
        raise PosefoundryError(
            f"train.batch_size auto: expected {TRIED[1]} images to fit in {free_bytes / 2**30:.1f} GiB, and they do "
            "not. Choose a smaller train.model or train.image_size_px, or state train.batch_size."
        )
    (few, few_bytes), (many, many_bytes) = list(peaks.items())[-2:]
    bytes_an_image = max(1.0, (many_bytes - few_bytes) / (many - few))
    return max(1, int(many + (limit - many_bytes) / bytes_an_image))


def rounded(n_images: int) -> int:
    """Returns the next lower multiple of 8 from 8 on, so that the same device finds the same number again."""
    return n_images - n_images % MULTIPLE_OF if n_images >= MULTIPLE_OF else n_images


def _peak_bytes(n_images: int, settings: Train, spec: DatasetSpec, device: torch.device) -> int:
    """Returns the most GPU memory that training on a batch takes, the model, its average and the optimiser included."""
    _forget_what_was_tried(device)
    before = torch.cuda.memory_reserved(device)
    train_on_noise(n_images, settings, spec, device)
    return torch.cuda.max_memory_reserved(device) - before


def _forget_what_was_tried(device: torch.device) -> None:
    """Frees what a batch took, also what lies in cycles, so that nothing of it is charged to what comes after."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


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
        image_rgb_chw=random.integers(0, 255, (3, side_px, side_px), np.uint8),
        class_ids=np.zeros(PERSONS_AN_IMAGE, np.int64),
        boxes_xyxy=corners_xyxy.astype(np.float32),
        keypoints_xyv=np.concatenate((keypoints_xy, np.full((*keypoints_xy.shape[:2], 1), 2.0)), 2).astype(np.float32),
    )
