"""What a user can mend is told with its remedies: a GPU's memory, wherever it runs out, and a missing compiler."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError
from posefoundry.models import PoseModel
from posefoundry.training.checkpoint import CheckpointFolder
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.faults import told_plainly
from posefoundry.training.loop import Trainer
from posefoundry.training.session import train_model

CUDA = torch.device("cuda", 1)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
    ],
)
def test_what_the_libraries_of_cuda_could_not_allocate_counts_too(text: str) -> None:
    with pytest.raises(PosefoundryError, match="cuda:1 has too little memory"), told_plainly(CUDA, 8):
        raise RuntimeError(text)


COMPILES = """
import torch
from posefoundry.errors import told_in_a_message
from posefoundry.training.faults import told_plainly
with told_in_a_message("train"), told_plainly(torch.device("cpu"), 8):
    torch.compile(lambda x: torch.sin(x) * 2 + x.exp())(torch.ones(1000))
"""


@pytest.mark.slow
def test_a_missing_compiler_is_told(tmp_path: Path) -> None:
    # In a process of its own: one that has compiled before remembers its compiler.
    without = {"CXX": str(tmp_path / "nothing"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILES], env=os.environ | without, capture_output=True, text=True, check=False
    )
    assert done.returncode == PosefoundryError.exit_status
    assert re.match(r"train: train\.compile: .* needs a C\+\+ compiler", done.stderr)
    assert "Traceback" not in done.stderr


def test_other_faults_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="device-side assert"), told_plainly(CUDA, 8):
        raise RuntimeError("CUDA error: device-side assert triggered")


def run_out(*_: object, **__: object) -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. See documentation for more.")


@pytest.mark.parametrize(
    ("of", "name"),
    [(PoseModel, "to"), (PoseModel, "forward"), (torch.optim.AdamW, "step"), (Trainer, "state_dict")],
    ids=["the model", "a step", "the optimiser's state", "a checkpoint"],
)
def test_it_is_told_with_its_remedies(
    of: type, name: str, people: Path, settings: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of, name, run_out)
    with pytest.raises(PosefoundryError) as told:
        train_model(
            settings,
            dataset_yaml=people / "yolo" / "dataset.yaml",
            val_annotations=people / "raw" / "annotations" / "val.json",
            weights_folder=tmp_path,
            group=ProcessGroup(rank=0, n_processes=1, device=torch.device("cpu")),
            checkpoints=CheckpointFolder(tmp_path / "checkpoints" / "this", settings.keep_checkpoints, {"who": "this"}),
        )
    assert str(told.value).startswith("cpu has too little memory for batches of 8 images a process. Lower train.batch")
    assert str(told.value).endswith("PyTorch says: CUDA out of memory. Tried to allocate 2.00 GiB")
