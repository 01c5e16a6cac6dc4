"""What a training says where there is no terminal."""

import pytest

from posefoundry.training import progress
from posefoundry.training.progress import training_progress

EPOCH = {"loss_total": 2.0, "loss_pose": 1.0, "images_per_second": 50.0, "val_oks_ap": 0.5, "val_oks_ap50": None}


def lines_of(every_s: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setattr(progress, "LINE_EVERY_S", every_s)
    with training_progress() as observer:
        for step in range(3):
            observer.step_done(step, 2000, {"loss_total": 3.0 - step})
        observer.epoch_done(1, EPOCH | {"val_box_ap": 0.25})
    return [line.partition("  0:")[0] for line in capsys.readouterr().out.splitlines()]


def test_a_line_an_epoch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    expected = "epoch   1  loss 2.00  pose 1.00  50 images/s  val OKS AP 0.500  AP50 n/a  box AP 0.250"
    assert lines_of(1e9, monkeypatch, capsys) == [expected]


def test_a_line_now_and_then_within_a_long_epoch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lines_of(0.0, monkeypatch, capsys)
    assert lines[:3] == [f"step {n} of 2,000  loss {4.0 - n:.2f}" for n in (1, 2, 3)] and len(lines) == 4
