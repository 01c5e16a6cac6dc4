"""A GPU's memory that does not hold the training is told with its remedies, wherever it runs out."""

from pathlib import Path
from typing import NoReturn

import pytest
import torch

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError
from posefoundry.models import PoseModel
from posefoundry.training.checkpoint import CheckpointFolder
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.loop import Trainer
from posefoundry.training.session import train_model


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
