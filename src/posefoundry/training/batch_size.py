"""`batch_size: auto`: the largest batch that the memory holds, found by training on a few small ones."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from posefoundry.config import Train
from posefoundry.datasets.yolo import DatasetSpec, image_files, read_dataset_yaml
from posefoundry.errors import PosefoundryError
from posefoundry.machine import free_memory_bytes
from posefoundry.training.checkpoint import CheckpointFolder
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.faults import is_of_memory
from posefoundry.training.trial import forget_what_was_tried, peak_bytes_on_cpu, peak_bytes_on_gpu
from posefoundry.values import AUTO_BATCH

# Without a GPU more images at once are no faster; this many are what the published recipes use on small machines.
MOST_ON_CPU = 16
# The rest is for batches more crowded than those tried, for validation, and for what the allocator cannot use.
SHARE_OF_FREE_MEMORY = 0.7
TRIED = (2, 4, 8, 16, 32)
TRIED_ON_CPU = (2, 4, 8)
MULTIPLE_OF = 8
# However much memory there is: an epoch of fewer steps teaches little.
LEAST_STEPS_AN_EPOCH = 20


def with_batch_that_fits(settings: Train, group: ProcessGroup, dataset_yaml: Path) -> Train:
    """Returns the settings with a number for `batch_size: auto`, the same in all processes.

    Args:
        settings: Section `train`; returned as they are where `batch_size` is a number.
        group: This process among its peers. Each tries its own GPU; for CPUs the main process tries.
        dataset_yaml: The data set to be learnt.

    Raises:
        PosefoundryError: Not even one image fits.
    """
    if settings.batch_size != AUTO_BATCH:
        return settings
    spec = read_dataset_yaml(dataset_yaml)
    if group.device.type == "cuda":
        fits, free_bytes = _fits_gpu(settings, group, spec)
        most = len(image_files(spec.splits["train"])) // LEAST_STEPS_AN_EPOCH
    else:
        fits, free_bytes = _fits_cpu(settings, group, spec)
        most = MOST_ON_CPU
    batch_size = group.n_processes * rounded(min([*group.gather([fits]), max(1, most // group.n_processes)]))
    if group.is_main:
        share = batch_size // group.n_processes
        print(
            f"train.batch_size auto: batches of {batch_size} images, {share} per process: they fit "
            f"in {100 * SHARE_OF_FREE_MEMORY:.0f} % of the {free_bytes / 2**30:.1f} GiB free on {group.device}."
        )
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
            f"train.batch_size auto: expected a batch that {settings.total_processes} processes can share evenly, got "
            f"{so_far} images, with which the training in {checkpoints.path} began. Train with as many processes as "
            "before, or delete that folder."
        )
    return settings.model_copy(update={"batch_size": so_far})


def _fits_gpu(settings: Train, group: ProcessGroup, spec: DatasetSpec) -> tuple[int, int]:
    """Returns how many images this process's GPU holds, and how many bytes of it are free."""
    free_bytes, _ = torch.cuda.mem_get_info(group.device)
    fits = largest_that_fits(lambda n: peak_bytes_on_gpu(n, settings, spec, group.device), free_bytes)
    forget_what_was_tried(group.device)
    return fits, free_bytes


def _fits_cpu(settings: Train, group: ProcessGroup, spec: DatasetSpec) -> tuple[int, int]:
    """Returns how many images a process's share of the memory holds, on the host that has least, and that share."""
    own = max(0, int((free_memory_bytes() - _cached_bytes(settings, spec)) / settings.processes))
    free_bytes, fits = min(group.gather([own])), 0
    if group.is_main:  # alone, or they would try in each other's memory
        with peak_bytes_on_cpu(settings, spec) as peak_bytes:
            fits = largest_that_fits(peak_bytes, free_bytes, TRIED_ON_CPU)
    return group.from_main(fits), free_bytes


def _cached_bytes(settings: Train, spec: DatasetSpec) -> float:
    """Returns what the decoded images of all processes of a host take at most."""
    if settings.image_cache_folder:
        return 0
    n_images = sum(len(image_files(spec.splits[split])) for split in ("train", "val"))
    return min(settings.image_cache_gib * 2**30, n_images * 3 * settings.image_size_px**2)


def largest_that_fits(peak_bytes: Callable[[int], int], free_bytes: int, tried: Sequence[int] = TRIED) -> int:
    """Returns how many images fit, by the straight line through the two largest batches that were tried.

    Args:
        peak_bytes: Trains on so many images and returns the most memory that took; raises `torch.OutOfMemoryError`,
            or what else `is_of_memory`, where that is more than there is.
        free_bytes: What there is, of which `SHARE_OF_FREE_MEMORY` is to be used.
        tried: Ever larger batches.

    Raises:
        PosefoundryError: One image takes more.
    """
    limit = SHARE_OF_FREE_MEMORY * free_bytes
    peaks: dict[int, int] = {}
    try:
        for n_images in tried:
            peaks[n_images] = peak_bytes(n_images)
            if peaks[n_images] > limit:
                break
    except RuntimeError as error:
        if not is_of_memory(error):
            raise
    if len(peaks) < 2:
        raise PosefoundryError(
            f"train.batch_size auto: expected memory for {tried[1]} images, got {free_bytes / 2**30:.1f} GiB, which is "
            "too little. Choose a smaller train.model, train.image_size_px or train.image_cache_gib, or state "
            "train.batch_size."
        )
    (few, few_bytes), (many, many_bytes) = list(peaks.items())[-2:]
    bytes_an_image = max(1.0, (many_bytes - few_bytes) / (many - few))
    return max(1, int(many + (limit - many_bytes) / bytes_an_image))


def rounded(n_images: int) -> int:
    """Returns the next lower multiple of 8 from 8 on, so that the same device finds the same number again."""
    return n_images - n_images % MULTIPLE_OF if n_images >= MULTIPLE_OF else n_images
