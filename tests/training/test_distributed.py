"""Two processes learn what one learns: torchrun and gloo against a single process, step by step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError
from posefoundry.models import build_model
from posefoundry.training.distributed import ProcessGroup, synchronise_batchnorm

SCRIPT = Path(__file__).with_name("train_steps.py")
COMMON = {
    "batch_size": 6,
    "image_size_px": 64,
    "device": "cpu",
    "precision": "float32",
    "optimizer": "sgd",
    "learning_rate": 0.002,
}


def train(people: Path, folder: Path, processes: int, **settings: object) -> dict:
    given, out = folder / "settings.json", folder / "out.json"
    given.write_text(json.dumps(COMMON | {"processes": processes} | settings))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = [str(SCRIPT), str(people / "yolo" / "dataset.yaml"), str(given), str(out)]
    subprocess.run([*launcher, *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240)
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["yolov8n-pose", "yolo26n-pose"])
def test_two_processes_follow_the_losses_of_one(people: Path, tmp_path: Path, model: str) -> None:
    # 24 images, batch 6: 4 steps an epoch, 52 in 13 epochs. Batch statistics differ between halves of a batch by
    # nature, so BatchNorm's are frozen; everything else must be the same mathematics.
    settings = {"model": model, "epochs": 13, "warmup_epochs": 1, "freeze_batchnorm": True, "validate_every_epochs": 13}
    losses = {processes: train(people, tmp_path, processes, **settings)["steps"][:50] for processes in (1, 2)}
    assert len(losses[1]) == len(losses[2]) == 50
    for name in (name for name in losses[1][0] if name.startswith("loss_")):
        one, two = ([step[name] for step in losses[processes]] for processes in (1, 2))
        np.testing.assert_allclose(two, one, rtol=1e-4, err_msg=name)
    assert losses[1][-1]["loss_total"] != losses[1][0]["loss_total"]


@pytest.mark.slow
def test_all_processes_judge_the_same_batchnorm_statistics(people: Path, tmp_path: Path) -> None:
    one, two = train(people, tmp_path, 2, epochs=1, warmup_epochs=0)["judged"]
    assert one == two


def test_batchnorm_is_synchronised_on_gpus_alone() -> None:
    model = build_model("yolov8n-pose")
    names = set(model.state_dict())
    with pytest.raises(PosefoundryError, match=r"train\.sync_batchnorm: expected GPUs, got device cpu"):
        synchronise_batchnorm(model, ProcessGroup(0, 2, torch.device("cpu")))
    same = synchronise_batchnorm(model, ProcessGroup(0, 2, torch.device("cuda", 0)))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in same.modules())
    assert set(same.state_dict()) == names
    image = torch.rand(1, 3, 64, 64)
    unfused = same.eval()(image)
    torch.testing.assert_close(same.fuse()(image), unfused, rtol=1e-3, atol=1e-3)


def test_batch_divides_among_the_processes_of_all_nodes() -> None:
    assert Train(nodes=2, processes=4, batch_size=16).total_processes == 8
    with pytest.raises(ValueError, match="multiple of nodes times processes, got 12 and 2 x 4"):
        Train(nodes=2, processes=4, batch_size=12)
