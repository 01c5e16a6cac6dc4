"""What a training step does on a GPU, as far as that shows where there is none: see `dry_gpu.py`."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posefoundry.config import Train
from posefoundry.skeleton import COCO_PERSON
from posefoundry.training.trial import train_on_noise

JOBS = {"yolov8n-pose musgd": 1, "yolo11n-pose sgd": 1, "yolo26n-pose adamw": 5}
THE_BATCH = "from cpu to drygpu in batch.py"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("dry") / "out.json"
    script = Path(__file__).with_name("dry_gpu.py")
    subprocess.run([sys.executable, "-W", "ignore", str(script), str(out)], check=True, timeout=300)
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("fault", "words"),
    [("WithTensorOfCpu", r"two (different )?devices"), ("WithNumberRead", "_local_scalar_dense")],
)
def test_a_loss_that_is_wrong_on_a_gpu_alone_is_found(told: dict[str, Any], fault: str, words: str) -> None:
    assert re.search(words, told[fault])


@pytest.mark.parametrize("job", JOBS)
def test_a_step_mixes_no_devices_and_reads_nothing_back(told: dict[str, Any], job: str) -> None:
    assert isinstance(told[job], dict), told[job]


@pytest.mark.parametrize(("job", "times"), JOBS.items())
def test_a_step_waits_for_nothing_but_how_many_anchors_learn(told: dict[str, Any], job: str, times: int) -> None:
    """One image tensor and four of labels go to the device; the number of positives comes back."""
    waits = {wait: times for wait, times in told[job].items() if not wait.startswith(THE_BATCH)}
    assert sum(told[job].values()) - sum(waits.values()) == 5
    assert all(wait.startswith("nonzero") for wait in waits)
    assert sum(waits.values()) <= times


@pytest.mark.gpu
@pytest.mark.parametrize("job", JOBS)
def test_a_real_gpu_agrees(job: str) -> None:
    """Two steps on noise are good ones, in the precision that the GPU has."""
    model, optimizer = job.split()
    settings = Train(model=model, optimizer=optimizer, image_size_px=64, learning_rate=1e-4)
    spec: Any = SimpleNamespace(class_names=("person",), kpt_shape=(17, 3), skeleton=COCO_PERSON)
    trainer = train_on_noise(2, settings, spec, torch.device("cuda", 0))
    trainer._read_back()
    assert (trainer.log.n_good, trainer.log.n_skipped) == (2, 0)
    assert all(value.isfinite().all() for value in trainer.average.model.state_dict().values())
