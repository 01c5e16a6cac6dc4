"""CIoU against values worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posefoundry.training.boxes import complete_iou

coordinate = st.floats(0, 100)
box = st.tuples(coordinate, coordinate, st.floats(1, 50), st.floats(1, 50)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


def test_by_hand() -> None:
    # 4x4 and 4x4 shifted by 2: IoU 8/24; centres 2 apart, enclosing box 6x4; equal aspect adds nothing.
    a, b = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 0, 6, 4]])
    assert complete_iou(a, b).item() == pytest.approx(8 / 24 - 4 / 52, abs=1e-5)


def test_aspect_term_by_hand() -> None:
    # 4x4 against 8x2 about one centre: IoU 8/24; v = 4/pi^2 (atan 4 - atan 1)^2; alpha = v / (1 - IoU + v).
    a, b = torch.tensor([[2.0, 2, 6, 6]]), torch.tensor([[0.0, 3, 8, 5]])
    v = 4 / math.pi**2 * (math.atan(4) - math.atan(1)) ** 2
    iou = 8 / 24
    assert complete_iou(a, b).item() == pytest.approx(iou - v * v / (1 - iou + v), abs=1e-5)


@given(box, box)
def test_bounds_and_symmetry(a: tuple, b: tuple) -> None:
    ab, ba = complete_iou(torch.tensor([a]), torch.tensor([b])), complete_iou(torch.tensor([b]), torch.tensor([a]))
    assert -1.5 <= ab.item() <= 1 + 1e-5
    assert ab.item() == pytest.approx(ba.item(), abs=1e-3)
    assert complete_iou(torch.tensor([a]), torch.tensor([a])).item() == pytest.approx(1, abs=1e-4)
