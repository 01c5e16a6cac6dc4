"""What tests of stages share: a model that was never trained, data, a project, and a training nobody disturbed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from posefoundry.config import Convert, Ingest, SyntheticSource
from posefoundry.models import ModelInfo, build_model
from posefoundry.models.weights import save_weights
from posefoundry.skeleton import COCO_PERSON, Skeleton
from posefoundry.stages import convert, ingest

# 16 images in batches of 4: 4 steps an epoch, 32 in all.
SETTINGS = {
    "model": "yolov8n-pose",
    "epochs": 8,
    "batch_size": 4,
    "image_size_px": 64,
    "device": "cpu",
    "precision": "float32",
    "optimizer": "adamw",
    "learning_rate": 0.002,
    "warmup_epochs": 0.5,
    "validate_every_epochs": 4,
    "checkpoint_every_steps": 3,
}
COMMAND = [sys.executable, "-m", "posefoundry.stages.train", "--raw", "data/raw", "--yolo", "data/yolo"]
COMMAND += ["--data-checks", "checks.json", "--checkpoints", "models/checkpoints", "--models", "models/train"]
COMMAND += ["--report", "reports/train"]


@dataclass(frozen=True)
class TrainingProject:
    """A folder in which the train stage can run."""

    root: Path
    command: tuple[str, ...] = tuple(COMMAND)

    def write_params(self, **changes: Any) -> None:
        """Writes params.yaml: the settings that the tests share, with changes."""
        (self.root / "params.yaml").write_text(yaml.safe_dump({"train": SETTINGS | changes}))

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Starts the stage, or another command."""
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        environment |= {"OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(self.root / "site")}
        return subprocess.Popen(
            command or self.command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip

    def run(self, *command: str) -> tuple[int, str]:
        """Runs the stage, or another command; returns its exit status and all that it told."""
        process = self.start(*command)
        told, _ = process.communicate(timeout=300)
        return process.returncode, told


@pytest.fixture(scope="session")
def make_weights() -> Callable[..., Path]:
    """Writes weights of a small model that sees persons everywhere."""

    def make(path: Path, *, seed: int = 0, image_size_px: int = 96, skeleton: Skeleton = COCO_PERSON) -> Path:
        torch.manual_seed(seed)
        kpt_shape = (skeleton.n_keypoints, 3)
        model = build_model("yolov8n-pose", kpt_shape=kpt_shape)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".cv3." in name and name.endswith(".2.bias"):
                    parameter.fill_(0.0)
        info = ModelInfo(
            architecture="yolov8n-pose", class_names=("person",), category_ids=(1,), kpt_shape=kpt_shape,
            skeleton=skeleton, stride_px=32, image_size_px=image_size_px,
        )  # fmt: skip
        save_weights(path, model.state_dict(), info, {})
        return path

    return make


@pytest.fixture(scope="session")
def training_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw/ and yolo/ of 16 + 4 + 4 images of 64 px."""
    root = tmp_path_factory.mktemp("training_data")
    synthetic = SyntheticSource(image_size_px=64, train_images=16, val_images=4, test_images=4)
    ingest.run(Ingest(synthetic=synthetic), raw=root / "raw", report=root / "ingest.json")
    convert.run(
        Convert(), raw=root / "raw", yolo=root / "yolo", receipt=root / "receipt.jsonl", report=root / "convert.json"
    )
    return root


@pytest.fixture(scope="session")
def training_project(training_data: Path, empty_store: Path) -> Callable[..., TrainingProject]:
    """Makes a project at a path, with changed settings if given."""

    def make(root: Path, **changes: Any) -> TrainingProject:
        root.mkdir(exist_ok=True)
        (root / "data").symlink_to(training_data)
        (root / "checks.json").write_text('{"passed": true}')
        (root / "dvc.yaml").write_text("stages: {}\n")
        shutil.copy(empty_store, root / "mlflow.db")
        project = TrainingProject(root)
        project.write_params(**changes)
        return project

    return make


@pytest.fixture(scope="session")
def trained_by_two(
    training_project: Callable[..., TrainingProject], tmp_path_factory: pytest.TempPathFactory
) -> TrainingProject:
    """A project under version control whose train stage has run undisturbed, over two processes."""
    project = training_project(tmp_path_factory.mktemp("trained_by_two") / "project", processes=2)
    root = project.root
    outs = [{"path": "data/yolo", "md5": "0123456789abcdef0123456789abcdef.dir"}]
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"convert": {"outs": outs}}}))
    commit = ["-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "x"]
    for command in (["init", "-q"], ["add", "dvc.yaml"], commit):
        subprocess.run(["git", *command], cwd=root, check=True)
    status, told = project.run()
    assert status == 0, told
    return project
