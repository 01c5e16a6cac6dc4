"""Two processes learn what one learns: torchrun and gloo against a single process, step by step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from posefoundry.config import Train
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.models import build_model
from posefoundry.training.data import TrainingImages
from posefoundry.training.distributed import join_process_group
from posefoundry.training.loader import training_loader
from posefoundry.training.loop import Trainer
from posefoundry.training.losses import build_criterion
from posefoundry.training.observer import Observer

dataset, settings, out = Path(sys.argv[1]), Train(**json.loads(sys.argv[2])), Path(sys.argv[3])

class Steps(Observer):
    rows = []
    def step_done(self, step, n_steps, values):
        self.rows.append(values)

group = join_process_group("cpu")
spec = read_dataset_yaml(dataset)
torch.manual_seed(settings.seed)
model = build_model(settings.model)
criterion = build_criterion(model, spec.skeleton, settings, group.sum)
loader = training_loader(TrainingImages(spec, settings), settings, group.rank, group.device)
steps = Steps()
judged = []
def validate(model):
    judged.append(sum(float(statistic.double().sum()) for statistic in model.buffers()))
    return {}
Trainer(model, settings, criterion, loader, group, [steps]).train(validate, lambda *_: None)
judged = group.gather([judged[-1]])
if group.is_main:
    out.write_text(json.dumps({"steps": steps.rows, "judged": judged}))
group.close()
"""


COMMON = {
    "batch_size": 6,
    "image_size_px": 64,
    "device": "cpu",
    "precision": "float32",
    "optimizer": "sgd",
    "learning_rate": 0.002,
}


def train(people: Path, folder: Path, processes: int, **settings: object) -> dict:
    script, out = folder / "train_steps.py", folder / "out.json"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    given = json.dumps(COMMON | {"processes": processes} | settings)
    arguments = [str(script), str(people / "yolo" / "dataset.yaml"), given, str(out)]
    subprocess.run([*launcher, *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["yolov8n-pose", "yolo26n-pose"])
def test_two_processes_follow_the_losses_of_one(people: Path, tmp_path: Path, model: str) -> None:
    # 24 images, batch 6: 4 steps an epoch, 20 in 5 epochs. Batch statistics differ between halves of a batch by nature,
    # so BatchNorm's are frozen; everything else must be the same mathematics.
    settings = {"model": model, "epochs": 5, "warmup_epochs": 1, "freeze_batchnorm": True}
    losses = {processes: train(people, tmp_path, processes, **settings)["steps"] for processes in (1, 2)}
    assert len(losses[1]) == len(losses[2]) == 20
    for name in (name for name in losses[1][0] if name.startswith("loss_")):
        one, two = ([step[name] for step in losses[processes]] for processes in (1, 2))
        np.testing.assert_allclose(two, one, rtol=1e-4, err_msg=name)
    assert losses[1][-1]["loss_total"] != losses[1][0]["loss_total"]


@pytest.mark.slow
def test_all_processes_judge_the_same_batchnorm_statistics(people: Path, tmp_path: Path) -> None:
    one, two = train(people, tmp_path, 2, epochs=1, warmup_epochs=0)["judged"]
    assert one == two
