"""A small dataset of drawn people, made once for all training tests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from posefoundry.config import Augment, Convert, Ingest, SyntheticSource, Train
from posefoundry.stages import convert, ingest
from posefoundry.training.distributed import ProcessGroup

Learn = Callable[[int, dict[str, dict[str, Any]]], dict[str, dict[str, list]]]

SIDE_PX = 64
BARE = Augment(
    flip_probability=0,
    rotate_degrees=0,
    translate_fraction=0,
    scale_fraction=0,
    hsv_hue=0,
    hsv_saturation=0,
    hsv_value=0,
    mosaic_probability=0,
    mosaic_off_epochs=0,
)


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw/ (COCO form) and yolo/ (label form) of 24 + 4 + 4 images of 64 px."""
    root = tmp_path_factory.mktemp("people")
    synthetic = SyntheticSource(image_size_px=SIDE_PX, train_images=24, val_images=4, test_images=4, max_persons=2)
    ingest.run(Ingest(seed=3, synthetic=synthetic), raw=root / "raw", report=root / "ingest.json")
    convert.run(
        Convert(), raw=root / "raw", yolo=root / "yolo", receipt=root / "receipt.jsonl", report=root / "convert.json"
    )
    return root


@pytest.fixture
def settings() -> Train:
    return Train(
        model="yolov8n-pose",
        epochs=2,
        batch_size=8,
        image_size_px=SIDE_PX,
        device="cpu",
        precision="float32",
        optimizer="adamw",
        learning_rate=0.002,
        warmup_epochs=0.5,
        augment=BARE,
    )


@pytest.fixture
def use_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch computes with until the test ends."""
    n_threads = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="session")
def small_job() -> dict[str, Any]:
    """Settings of a short training by `learn`: 4 steps."""
    return {
        "image_size_px": 64, "batch_size": 6, "device": "cpu", "precision": "float32", "epochs": 1, "warmup_epochs": 0,
    }  # fmt: skip


@pytest.fixture(scope="session")
def learn(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Learn:
    """Trains, under torchrun over so many processes, named jobs; returns each step's losses and what was judged."""

    def learn(processes: int, jobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, list]]:
        folder = tmp_path_factory.mktemp("learnt")
        given, out = folder / "jobs.json", folder / "out.json"
        given.write_text(json.dumps({name: job | {"processes": processes} for name, job in jobs.items()}))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        arguments = [str(Path(__file__).with_name("train_steps.py")), str(people / "yolo/dataset.yaml"), given, out]
        subprocess.run([*launcher, *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900)
        return json.loads(out.read_text())

    return learn


@dataclass(frozen=True)
class OneOfPair(ProcessGroup):
    """One of two processes that are really one: rank 1 speaks first where lists are gathered, rank 0 elsewhere."""

    post: dict[str, Any] = field(default_factory=dict)

    def gather(self, local: list[Any]) -> list[Any]:
        if not self.is_main:
            self.post["list"] = local
            return local
        return [*local, *self.post.pop("list")]

    def gather_in_main(self, local: list[Any]) -> list[Any]:
        return self.gather(local)

    def from_main(self, value: Any) -> Any:
        if self.is_main:
            self.post["value"] = value
        return self.post["value"]


@pytest.fixture
def pair() -> tuple[ProcessGroup, ProcessGroup]:
    """Two processes' groups, to be used in turn."""
    post: dict[str, Any] = {}
    first, second = (OneOfPair(rank, 2, torch.device("cpu"), post=post) for rank in range(2))
    return first, second
