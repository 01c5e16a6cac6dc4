import numpy as np
import pytest

from posefoundry.errors import PosefoundryError
from posefoundry.export.parity import measure_parity, require_parity

KPT_SHAPE = (2, 3)
ROWS = 4 + 1 + 6
BATCHES = [np.zeros((1, 3, 32, 32), np.float32), np.zeros((2, 3, 32, 64), np.float32)]


def predictions(batch: np.ndarray) -> np.ndarray:
    """Returns 300 anchors an image, of which the first ten are sure (0.9) and the others are not (0.01)."""
    decoded = np.zeros((len(batch), ROWS, 300), np.float32)
    decoded[:, 4] = 0.01
    decoded[:, 4, :10] = 0.9
    return decoded


def shifted(row: int, anchor: int, by: float):
    def infer(batch: np.ndarray) -> np.ndarray:
        decoded = predictions(batch)
        decoded[-1, row, anchor] += by
        return decoded

    return infer


def parity_with(candidate):
    return measure_parity(predictions, candidate, BATCHES, n_classes=1, kpt_shape=KPT_SHAPE)


def test_equal_outputs_have_no_error():
    parity = parity_with(predictions)
    assert (parity.max_error_px, parity.max_error_score, parity.max_error_px_all, parity.max_error_score_all) == (
        0,
    ) * 4
    assert parity.batches == 2
    assert parity.input_shapes == ("1x3x32x32", "2x3x32x64")


@pytest.mark.parametrize("row", [0, 1, 2, 3, 5, 6, 8, 9])
def test_boxes_and_keypoints_count_in_px(row):
    parity = parity_with(shifted(row, anchor=3, by=0.5))
    assert parity.max_error_px == pytest.approx(0.5)
    assert parity.max_error_score == 0


@pytest.mark.parametrize("row", [4, 7, 10])
def test_class_score_and_visibility_count_as_scores(row):
    parity = parity_with(shifted(row, anchor=3, by=0.05))
    assert parity.max_error_score == pytest.approx(0.05)
    assert parity.max_error_px == 0


def test_without_visibility_all_keypoint_rows_are_px():
    one_of = {"kpt_shape": (3, 2), "n_classes": 1}
    parity = measure_parity(predictions, shifted(7, 0, 0.25), BATCHES, **one_of)
    assert parity.max_error_px == 0.25


def test_anchors_that_become_nothing_are_reported_but_not_judged():
    def sure_of_two_hundred(batch):
        decoded = predictions(batch)
        decoded[:, 4, :200] = 0.9
        return decoded

    def strays_elsewhere(batch):
        decoded = sure_of_two_hundred(batch)
        decoded[:, 0, 250] += 7
        return decoded

    parity = measure_parity(sure_of_two_hundred, strays_elsewhere, BATCHES, n_classes=1, kpt_shape=KPT_SHAPE)
    assert parity.confident_anchors == 3 * 200
    assert parity.max_error_px == 0
    assert parity.max_error_px_all == 7


def test_of_a_model_that_is_sure_of_nothing_the_best_anchors_are_judged():
    def unsure(batch):
        decoded = predictions(batch)
        decoded[:, 4] = np.linspace(0.2, 0.0, 300)
        return decoded

    def strays(batch):
        decoded = unsure(batch)
        decoded[:, 0, 99] += 1
        decoded[:, 0, 100] += 2
        return decoded

    parity = measure_parity(unsure, strays, BATCHES, n_classes=1, kpt_shape=KPT_SHAPE)
    assert parity.confident_anchors == 3 * 100
    assert parity.max_error_px == 1


def test_an_error_above_the_limit_is_refused_and_names_the_setting():
    parity = parity_with(shifted(0, anchor=3, by=0.5))
    require_parity(parity, max_error_px=0.5, artifact="model.onnx", setting="export.onnx.max_parity_error_px")
    with pytest.raises(PosefoundryError, match=r"model\.onnx: expected .*0\.4 px.*got 0\.5 px.*raise export\.onnx"):
        require_parity(parity, max_error_px=0.4, artifact="model.onnx", setting="export.onnx.max_parity_error_px")


@pytest.mark.parametrize("row", [0, 4])
def test_nan_is_refused(row):
    with pytest.raises(PosefoundryError, match="got NaN or infinity from the artifact"):
        parity_with(shifted(row, anchor=3, by=float("nan")))


def test_outputs_of_another_shape_are_refused():
    with pytest.raises(PosefoundryError, match=r"got \(1, 11, 299\) from the artifact"):
        parity_with(lambda batch: predictions(batch)[:, :, :-1])
