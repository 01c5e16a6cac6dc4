"""Worker processes change nothing but the speed; they share the decoded images and end with their parent."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch

from posefoundry.config import Augment, Train
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.errors import PosefoundryError
from posefoundry.training import loader as loader_module
from posefoundry.training.batch import Batch
from posefoundry.training.data import TrainingImages
from posefoundry.training.loader import batches, n_loader_workers, training_loader
from posefoundry.values import AUTO_WORKERS

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def two_epochs(people: Path, settings: Train) -> tuple[list[Batch], TrainingImages, list[int]]:
    images = TrainingImages(read_dataset_yaml(people / "yolo" / "dataset.yaml"), settings)
    loader = training_loader(images, settings, 0, CPU)
    batches, workers = [], []
    for epoch in (0, 1):
        loader.batch_sampler.epoch = epoch
        batches += list(loader)
        workers.append(
            {child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())}
        )
    assert len(workers[0]) == settings.loader_workers
    assert workers[0] == workers[1], "the workers of the first epoch are to serve the second too"
    return batches, images, sorted(workers[0])


def test_workers_change_nothing(people: Path, settings: Train) -> None:
    settings = settings.model_copy(update={"augment": Augment(), "loader_workers": 0})
    alone, images_alone, _ = two_epochs(people, settings)
    # OpenCV's threads run here by now: a fork would hang.
    helped, images, workers = two_epochs(people, settings.model_copy(update={"loader_workers": 2}))
    assert len(alone) == len(helped) == 6
    for one, other in zip(alone, helped, strict=True):
        for name in ("images", "class_ids", "boxes_xyxy", "keypoints_xyv", "is_person"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    # What the workers decoded is here too, though this process decoded nothing.
    kept = [index for index in range(len(images)) if images.cache.get(index) is not None]
    assert kept == list(range(len(images)))
    assert (images.cache.get(5) == images_alone.cache.get(5)).all()
    assert workers


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_batches_for_a_gpu_alone_are_pinned(people: Path, settings: Train, loader_workers: int) -> None:
    settings = settings.model_copy(update={"loader_workers": loader_workers})
    images = TrainingImages(read_dataset_yaml(people / "yolo" / "dataset.yaml"), settings)
    assert training_loader(images, settings, 0, CUDA).pin_memory
    assert not training_loader(images, settings, 0, CPU).pin_memory


SCRIPT = """
import json, sys
from pathlib import Path
import torch
from posefoundry.config import Train
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.training.data import TrainingImages
from posefoundry.training.loader import training_loader

settings = Train(**json.loads(sys.argv[2]))
images = TrainingImages(read_dataset_yaml(Path(sys.argv[1])), settings)
batches = iter(training_loader(images, settings, 0, torch.device("cpu")))
for number, batch in enumerate(batches):
    print(number, flush=True)
    if sys.argv[3:] == ["wait"]:
        sys.stdin.read()
    elif sys.argv[3:] == ["fail"]:
        sys.exit(3)
"""


def test_a_script_needs_no_main_guard_and_its_workers_die_with_it(
    people: Path, settings: Train, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    given = settings.model_copy(update={"loader_workers": 1}).model_dump(mode="json")
    command = [sys.executable, str(script), str(people / "yolo" / "dataset.yaml"), json.dumps(given), "wait"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "0\n"
        (worker,) = (
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        )
        worker.terminate()  # as those do who signal all processes of a training
        time.sleep(0.2)
        assert worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs([worker], timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_script_that_fails_does_not_wait_for_its_workers(people: Path, settings: Train, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    given = settings.model_copy(update={"loader_workers": 1}).model_dump(mode="json")
    command = [sys.executable, str(script), str(people / "yolo" / "dataset.yaml"), json.dumps(given), "fail"]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=90, check=False).returncode == 3


def test_what_a_worker_cannot_read_is_told_without_its_lines_of_code() -> None:
    def loader() -> Iterator[Batch]:
        raise PosefoundryError(
            "Caught PosefoundryError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            '  File "data.py", line 1\nposefoundry.errors.PosefoundryError: a.jpg: expected an image.\n'
        )
        yield

    with pytest.raises(PosefoundryError, match=r"^a\.jpg: expected an image\.$"):
        next(batches(cast(Any, loader())))


def test_too_little_shared_memory_is_told(people: Path, settings: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 2**16})
    monkeypatch.setattr(loader_module.shutil, "disk_usage", lambda path: usage)
    images = TrainingImages(read_dataset_yaml(people / "yolo" / "dataset.yaml"), settings)
    with pytest.raises(PosefoundryError, match=r"MiB free .* got 0\. Give the container more"):
        training_loader(images, settings.model_copy(update={"loader_workers": 2}), 0, CPU)


@pytest.mark.parametrize(
    ("cores", "processes", "free_bytes", "expected"),
    [
        (16, 1, 2**40, 15),
        (64, 1, 2**40, 16),
        (16, 4, 2**40, 3),
        (1, 1, 2**40, 0),
        (1, 2, 2**40, 0),
        (16, 1, 2 * 4 * 8 * 3 * 64**2, 2),
        (16, 4, 4 * 2 * 4 * 8 * 3 * 64**2 - 1, 1),
    ],
)
def test_workers_are_what_a_gpus_process_leaves_free(
    cores: int,
    processes: int,
    free_bytes: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loader_module.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(loader_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free_bytes}))
    settings = Train(loader_workers="auto", batch_size=8 * processes, processes=processes, image_size_px=64)
    assert n_loader_workers(settings, CUDA, 1) == expected
    assert n_loader_workers(settings, CPU, 0) == 0
    assert n_loader_workers(settings.model_copy(update={"loader_workers": 5}), CUDA, 0) == 5
    assert capsys.readouterr().err == ""
    n_loader_workers(settings, CUDA, 0)
    assert bool(capsys.readouterr().err) == (free_bytes < 2**40), "said where the room is what bounds the number"


def test_that_shared_memory_has_room_for_few_workers_is_said(
    people: Path, settings: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader_module, "usable_cores", lambda: 16)
    monkeypatch.setattr(loader_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**26}))
    images = TrainingImages(read_dataset_yaml(people / "yolo" / "dataset.yaml"), settings)
    settings = settings.model_copy(update={"loader_workers": AUTO_WORKERS, "batch_size": 32, "image_size_px": 640})
    assert training_loader(images, settings, 0, CUDA).num_workers == 0
    assert capsys.readouterr().err == (
        "/dev/shm: expected 1125 MiB free for the batches that 15 workers a process hold ready, got 64: "
        "train.loader_workers auto takes 0 instead of 15. Give the container more (docker run --shm-size).\n"
    )


@pytest.mark.parametrize(
    ("batch_size", "processes", "n_workers", "expected"),
    [
        pytest.param(8, 1, 2, 4, id="small batches"),
        pytest.param(256, 1, 2, 2, id="some 1,024 images"),
        pytest.param(600, 1, 2, 1, id="a batch a worker where that is more"),
        pytest.param(512, 4, 2, 4, id="each process has its share of the batch"),
    ],
)
def test_large_batches_are_prepared_less_far_ahead(
    people: Path,
    settings: Train,
    batch_size: int,
    processes: int,
    n_workers: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings.model_copy(
        update={"batch_size": batch_size, "processes": processes, "loader_workers": n_workers}
    )
    images = TrainingImages(read_dataset_yaml(people / "yolo" / "dataset.yaml"), settings)
    room = type("Usage", (), {"free": n_workers * expected * batch_size * 3 * 64**2})
    monkeypatch.setattr(loader_module.shutil, "disk_usage", lambda _: room)
    assert training_loader(images, settings, 0, CPU).prefetch_factor == expected
    room.free -= 1
    with pytest.raises(PosefoundryError, match="MiB free for the batches"):
        training_loader(images, settings, 0, CPU)
