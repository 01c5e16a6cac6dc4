"""Letterboxing keeps the image whole, undistorted and centred, and every point finds its way back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posefoundry.inference.letterbox import PADDING_GREY, input_size_hw, letterbox

sides = st.integers(1, 400)


@settings(deadline=None)
@given(height=sides, width=sides, target=st.sampled_from([32, 64, 160, 320]), stride=st.sampled_from([32, 64]))
def test_the_input_is_the_smallest_multiple_that_holds_the_image(height, width, target, stride):
    size = input_size_hw((height, width), target, stride)
    scale = target / max(height, width)
    for side, source in zip(size, (height, width), strict=True):
        assert side % stride == 0 and side > 0
        assert side - stride < max(round(source * scale), 1) <= side


@settings(deadline=None)
@given(height=sides, width=sides, data=st.data())
def test_points_come_back(height, width, data):
    _, box = letterbox(np.zeros((height, width, 3), np.uint8), (160, 224))
    coordinate = st.floats(-500, 500, width=32)
    points = np.array(data.draw(st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=5)), np.float32)
    back = box.to_source_xy(points * np.float32(box.scale_xy) + np.float32(box.pad_xy))
    np.testing.assert_allclose(back, points, atol=2e-3 / min(box.scale_xy), rtol=1e-5)


@settings(deadline=None)
@given(height=sides, width=sides)
def test_the_image_fills_its_place_and_grey_the_rest(height, width):
    inside, box = letterbox(np.full((height, width, 3), 255, np.uint8), (128, 96))
    corners = np.array([[0, 0], [width, height]]) * box.scale_xy + box.pad_xy
    (left, top), (right, bottom) = corners.round().astype(int)
    assert (inside[top:bottom, left:right] == 255).all()
    outside = np.ones((128, 96), bool)
    outside[top:bottom, left:right] = False
    assert (inside[outside] == PADDING_GREY).all()
    assert abs(left - (96 - right)) <= 1 and abs(top - (128 - bottom)) <= 1
    assert right - left == 96 or bottom - top == 128


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [((480, 640), (480, 640)), ((427, 640), (448, 640)), ((1000, 500), (640, 320)), ((1, 5000), (32, 640))],
)
def test_input_sizes_worked_by_hand(size_hw, expected):
    assert input_size_hw(size_hw, 640, 32) == expected


def test_content_is_where_the_letterbox_says():
    image = np.zeros((50, 100, 3), np.uint8)
    image[20:30, 60:70] = 255
    fitted, box = letterbox(image, (160, 160))
    ys, xs = np.nonzero(fitted[..., 0] > 200)
    centre = box.to_source_xy(np.array([xs.mean() + 0.5, ys.mean() + 0.5], np.float32))
    np.testing.assert_allclose(centre, (65, 25), atol=0.2)
