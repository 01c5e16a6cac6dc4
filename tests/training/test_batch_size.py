"""`batch_size: auto` finds what fits, also where trying runs out of memory."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from posefoundry.config import Train
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.errors import PosefoundryError
from posefoundry.training import batch_size
from posefoundry.training import trial as trials
from posefoundry.training.batch_size import (
    SHARE_OF_FREE_MEMORY,
    TRIED,
    largest_that_fits,
    rounded,
    with_batch_so_far,
    with_batch_that_fits,
)
from posefoundry.training.checkpoint import CheckpointFolder
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.trial import train_on_noise
from posefoundry.values import AUTO_BATCH

ALONE = ProcessGroup(rank=0, n_processes=1, device=torch.device("cpu"))
MODEL_BYTES, IMAGE_BYTES = 700, 90


class Peers(ProcessGroup):
    """Processes that all have what this one has."""

    def gather(self, local: list[Any]) -> list[Any]:
        return local * self.n_processes

    def from_main(self, value: Any) -> Any:
        return value


def memory_of(free_bytes: int, tried: list[int]):
    """A device whose memory a model and each image take their share of."""

    def peak_bytes(n_images: int) -> int:
        tried.append(n_images)
        taken = MODEL_BYTES + n_images * IMAGE_BYTES
        if taken > free_bytes:
            raise torch.OutOfMemoryError
        return taken

    return peak_bytes


@pytest.mark.parametrize("free_bytes", [1400, 3000, 10_000, 1_000_000])
def test_the_largest_batch_within_the_share_is_found_by_trying_small_ones(free_bytes: int) -> None:
    tried: list[int] = []
    found = largest_that_fits(memory_of(free_bytes, tried), free_bytes)
    limit = SHARE_OF_FREE_MEMORY * free_bytes
    assert MODEL_BYTES + found * IMAGE_BYTES <= limit < MODEL_BYTES + (found + 1) * IMAGE_BYTES
    assert max(tried) <= max(TRIED)


def test_a_device_too_small_for_any_batch_is_told() -> None:
    with pytest.raises(PosefoundryError, match=r"train\.batch_size auto: expected memory for 4 images, .* smaller"):
        largest_that_fits(memory_of(600, []), 600)


@pytest.mark.parametrize(
    "text", ["cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `create`"]
)
def test_a_batch_does_not_fit_either_where_a_library_of_cuda_cannot_allocate(text: str) -> None:
    def peak_bytes(n_images: int) -> int:
        if n_images > 4:
            raise RuntimeError(text)
        return MODEL_BYTES + n_images * IMAGE_BYTES

    assert largest_that_fits(peak_bytes, 1600) == 4


def test_what_is_not_of_memory_ends_the_trial() -> None:
    def peak_bytes(n_images: int) -> int:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        largest_that_fits(peak_bytes, 10_000)


def test_found_numbers_are_multiples_of_8_where_they_can_be() -> None:
    assert [rounded(n) for n in (1, 5, 8, 15, 70)] == [1, 5, 8, 8, 64]


def on_a_cpu_with(free_gib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that so much is free, that an image of a batch takes 1/8 GiB, and the rest 1 GiB."""

    @contextmanager
    def trial(settings: Train, spec: object) -> Iterator[Callable[[int], int]]:
        yield lambda n_images: 2**30 + n_images * 2**27

    monkeypatch.setattr(batch_size, "free_memory_bytes", lambda: int(free_gib * 2**30))
    monkeypatch.setattr(batch_size, "image_files", lambda folder: [folder] * 10**6)  # more than any cache holds
    monkeypatch.setattr(batch_size, "peak_bytes_on_cpu", trial)


@pytest.mark.parametrize(
    ("free_gib", "processes", "expected"),
    [
        pytest.param(64, 1, 16, id="more are no faster"),
        pytest.param(64, 3, 15, id="as many for each process"),
        pytest.param(2 + 3.5, 1, 8, id="11 fit beside the cache, rounded to 8"),
        pytest.param(2 + 5, 2, 12, id="half for each of two, 11 fit, 6 of 12 each"),
        pytest.param(2 + 2.2, 1, 4, id="fewer than 8"),
    ],
)
def test_cpus_take_the_usual_batch_or_the_fewer_that_fit(
    people: Path,
    free_gib: float,
    processes: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    on_a_cpu_with(free_gib, monkeypatch)
    group = Peers(rank=0, n_processes=processes, device=torch.device("cpu"))
    auto = Train(batch_size="auto", processes=processes)
    assert with_batch_that_fits(auto, group, people / "yolo" / "dataset.yaml").batch_size == expected
    told = f"batches of {expected} images, {expected // processes} per process: they fit in 70 % of the"
    assert told in capsys.readouterr().out


def test_a_cpu_with_too_little_memory_is_told(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_cpu_with(2 + 1.2, monkeypatch)
    with pytest.raises(
        PosefoundryError, match=r"1\.2 GiB, which is too little\. Choose a smaller train\.model, .*cache_gib"
    ):
        with_batch_that_fits(Train(batch_size="auto"), ALONE, people / "yolo" / "dataset.yaml")


def test_what_is_tried_leaves_nothing_behind(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[weakref.ref[Any]] = []
    resets: list[bool] = []

    def trial(n_images: int, *_: object) -> None:
        assert not any(reference() for reference in left)
        model = nn.Linear(2, 2)
        model.hook_to_itself = lambda: model  # type: ignore[assignment]
        left.append(weakref.ref(model))
        if n_images == 8:
            raise torch.OutOfMemoryError

    def peak(*_: object) -> int:
        return len(left) * 100

    monkeypatch.setattr(trials, "train_on_noise", trial)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2000, 2000))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", peak)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda _: resets.append(any(reference() for reference in left))
    )
    gpu = ProcessGroup(rank=0, n_processes=1, device=torch.device("cuda", 0))
    with_batch_that_fits(Train(batch_size="auto"), gpu, people / "yolo" / "dataset.yaml")
    assert resets == [False] * 4, "before each of three trials and after the last"


def test_a_cache_larger_than_the_data_leaves_room(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = people / "yolo" / "dataset.yaml"
    spec = read_dataset_yaml(dataset)
    settings = Train(batch_size="auto", image_cache_gib=1e6, image_size_px=64)
    assert batch_size._cached_bytes(settings, spec) == (24 + 4) * 3 * 64 * 64
    assert batch_size._cached_bytes(settings.model_copy(update={"image_cache_folder": people}), spec) == 0
    on_a_cpu_with(64, monkeypatch)
    monkeypatch.setattr(batch_size, "image_files", lambda folder: [folder] * 24)
    assert with_batch_that_fits(settings, ALONE, dataset).batch_size == 16


def test_a_number_stays_and_nothing_is_tried() -> None:
    settings = Train(batch_size=24)
    assert with_batch_that_fits(settings, ALONE, Path("nowhere.yaml")) is settings


@pytest.mark.parametrize("given", ["auto", -1])
def test_auto_may_be_written_both_ways(given: object) -> None:
    assert Train(batch_size=given, processes=3).batch_size == AUTO_BATCH


@pytest.mark.parametrize("given", [0, -2, 0.7, "all"])
def test_anything_else_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        Train(batch_size=given)


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A GPU of which this process may have 2 GiB, beside which the model of `settings` is small."""
    device, may_have = torch.device("cuda", 0), 2 * 2**30
    torch.cuda.set_per_process_memory_fraction(may_have / torch.cuda.get_device_properties(device).total_memory, device)
    trials.forget_what_was_tried(device)
    # The driver, which is asked otherwise, knows nothing of that bound.
    free_bytes = may_have - torch.cuda.memory_reserved(device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_bytes, may_have))
    yield device
    trials.forget_what_was_tried(device)
    torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.gpu
def test_what_is_found_on_a_gpu_trains_and_fills_it(
    people: Path, settings: Train, small_gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image takes some 50 MiB, so that the largest of the batches tried is too large already."""
    monkeypatch.setattr(batch_size, "image_files", lambda folder: [folder] * 10**6)  # however many fit, they are few
    auto = settings.model_copy(update={"batch_size": AUTO_BATCH, "image_size_px": 320})
    dataset, gpu = people / "yolo" / "dataset.yaml", ProcessGroup(rank=0, n_processes=1, device=small_gpu)
    found = with_batch_that_fits(auto, gpu, dataset).batch_size
    assert found >= 8
    assert train_on_noise(found, auto, read_dataset_yaml(dataset), small_gpu).step == 2
    trials.forget_what_was_tried(small_gpu)
    # What is found takes 70 % of the memory or, rounded down to 8 from 15 at worst, 37 %.
    with pytest.raises(torch.OutOfMemoryError):
        train_on_noise(4 * found, auto, read_dataset_yaml(dataset), small_gpu)


def test_a_training_goes_on_with_the_batch_that_was_found_first(tmp_path: Path) -> None:
    folder, auto = CheckpointFolder(tmp_path / "this", 2), Train(batch_size="auto")
    assert with_batch_so_far(auto, folder, ALONE).batch_size == AUTO_BATCH
    folder.write(1, {}, {"batch_size": 24}, None)
    assert with_batch_so_far(auto, folder, ALONE).batch_size == 24
    assert with_batch_so_far(Train(batch_size=8), folder, ALONE).batch_size == 8
    with pytest.raises(PosefoundryError, match="expected a batch that 5 processes can share evenly, got 24 images"):
        with_batch_so_far(Train(batch_size="auto", processes=5), folder, ALONE)
