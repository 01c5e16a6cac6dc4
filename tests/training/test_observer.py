"""The files of a training: what they hold after returns and refusals, and that they cost no more as they grow."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from posefoundry import files
from posefoundry.training import observer
from posefoundry.training.observer import FileLog


def tell(log: FileLog, epoch: int, *steps: int, loss: float = 0.5) -> None:
    for step in steps:
        log.step_done(step, 100, {"loss_total": loss, "skipped": 0.0})
    log.epoch_done(epoch, {"loss_total": loss})


def steps(folder: Path) -> list[str]:
    return (folder / "steps.csv").read_text().splitlines()


def test_an_epoch_adds_its_rows_alone(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    tell(log, 1, 0, 1)
    assert steps(tmp_path) == ["step,loss_total,skipped", "0,0.5,0", "1,0.5,0"]
    path = tmp_path / "steps.csv"
    path.write_text(path.read_text().replace("0,0.5,0", "as it was"))
    tell(log, 2, 2, loss=1 / 3)
    assert steps(tmp_path) == ["step,loss_total,skipped", "as it was", "1,0.5,0", "2,0.333333,0"]
    path.unlink()
    tell(log, 3, 3, loss=float("nan"))
    assert steps(tmp_path) == ["step,loss_total,skipped", "0,0.5,0", "1,0.5,0", "2,0.333333,0", "3,nan,0"]
    assert {path.name for path in tmp_path.iterdir()} == {"results.csv", "results.json", "steps.csv"}


def test_rows_that_were_given_up_or_are_of_another_training_go(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    empty = log.state_dict()
    tell(log, 1, 0, 1)
    kept = log.state_dict()
    tell(log, 2, 2, 3)
    log.load_state_dict(kept)
    tell(log, 2, 2, loss=0.25)
    assert steps(tmp_path)[1:] == ["0,0.5,0", "1,0.5,0", "2,0.25,0"]
    again = FileLog(tmp_path)
    again.load_state_dict(empty)
    tell(again, 1, 0)
    assert steps(tmp_path) == ["step,loss_total,skipped", "0,0.5,0"]


def test_what_the_disk_refused_is_written_with_the_next_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = FileLog(tmp_path)
    tell(log, 1, 0)

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(observer.os, "fsync", refuse)
        tell(log, 2, 1)
    assert "the log of epoch 2 could not be written" in capsys.readouterr().err
    tell(log, 3, 2)
    assert steps(tmp_path)[1:] == ["0,0.5,0", "1,0.5,0", "2,0.5,0"]


def test_pictures_that_the_disk_refuses_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, grey = FileLog(tmp_path), np.full((8, 8, 3), 128, np.uint8)

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", refuse)
        log.picture("train_batch_0", grey)
        log.picture("train_batch_1", grey)
    log.picture("val_1", grey)
    (told,) = capsys.readouterr().err.splitlines()
    refused = f"[Errno 28] No space left on device: '{tmp_path / 'samples' / 'train_batch_0.jpg'}'"
    assert told == f"picture train_batch_0 not written: {refused}. The training goes on."
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["val_1.jpg"]
    assert np.array_equal(cv2.imread(str(tmp_path / "samples" / "val_1.jpg")), grey)


def test_the_state_is_a_copy(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    tell(log, 1, 0, 1)
    state = log.state_dict()
    assert state["steps"].dtype == torch.float64
    assert state["steps"].tolist() == [[0, 0.5, 0], [1, 0.5, 0]]
    tell(log, 2, 2)
    assert len(state["steps"]) == 2
