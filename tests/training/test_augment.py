"""Persons travel with their pixels: every augmentation moves a coloured dot exactly where it says the keypoint went."""

import cv2
import numpy as np
import pytest

from posefoundry.config import Augment
from posefoundry.training.augment import Scene, mirror, shift_colour, warp
from posefoundry.training.compose import mosaic

SIDE = 160
FLIP = (0, 2, 1)
COLOURS_BGR = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
ALL_ON = Augment(rotate_degrees=25, translate_fraction=0.1, scale_fraction=0.3)


def scene(rng: np.random.Generator, side: int = SIDE) -> Scene:
    """One person with three keypoints, each a dot of its own colour on grey."""
    image = np.full((side, side, 3), 90, np.uint8)
    points = np.array([[0.35, 0.35], [0.65, 0.4], [0.5, 0.68]]) * side + rng.uniform(-4, 4, (3, 2))
    for (x, y), colour in zip(points, COLOURS_BGR, strict=True):
        # A keypoint counts from the pixel's corner, OpenCV draws about the pixel's centre.
        centre = (round((x - 0.5) * 16), round((y - 0.5) * 16))
        cv2.circle(image, centre, 4 * 16, colour, -1, cv2.LINE_AA, shift=4)
    keypoints = np.column_stack([points, [2, 2, 1]])[None].astype(np.float32)
    box = np.array([[*(points.min(0) - 5), *(points.max(0) + 5)]], np.float32)
    return Scene(image, np.zeros(1, np.int64), box, keypoints)


def dot_xy(image_bgr: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    channel = int(np.argmax(colour))
    others = [c for c in range(3) if c != channel]
    weight = (image_bgr[..., channel].astype(float) - image_bgr[..., others].max(-1)).clip(0)
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]] + 0.5
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("seed", range(8))
def test_warp_keeps_keypoints_on_their_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    warped = warp(scene(rng), SIDE, ALL_ON, rng)
    assert warped.image_bgr.shape == (SIDE, SIDE, 3)
    for keypoint, colour in zip(warped.keypoints_xyv[0], COLOURS_BGR, strict=True):
        np.testing.assert_allclose(keypoint[:2], dot_xy(warped.image_bgr, colour), atol=0.35)


@pytest.mark.parametrize("seed", range(4))
def test_warp_of_a_smaller_image_scales_persons_with_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    warped = warp(scene(rng, side=SIDE // 2), SIDE, Augment(translate_fraction=0, scale_fraction=0), rng)
    for keypoint, colour in zip(warped.keypoints_xyv[0], COLOURS_BGR, strict=True):
        np.testing.assert_allclose(keypoint[:2], dot_xy(warped.image_bgr, colour), atol=0.35)


def test_mirror_exchanges_left_and_right() -> None:
    before = scene(np.random.default_rng(0))
    after = mirror(before, FLIP)
    for index, source in enumerate(FLIP):
        np.testing.assert_allclose(
            after.keypoints_xyv[0, index, :2], dot_xy(after.image_bgr, COLOURS_BGR[source]), atol=0.3
        )
    assert after.keypoints_xyv[0, 1, 2] == before.keypoints_xyv[0, 2, 2]
    np.testing.assert_allclose(mirror(after, FLIP).keypoints_xyv, before.keypoints_xyv, atol=1e-4)
    np.testing.assert_array_equal(mirror(after, FLIP).image_bgr, before.image_bgr)


def test_mirror_leaves_unlabelled_keypoints_at_zero() -> None:
    before = scene(np.random.default_rng(0))
    before.keypoints_xyv[0, 1] = 0
    assert (mirror(before, FLIP).keypoints_xyv[0, 2] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_mosaic_keeps_keypoints_on_their_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    merged = mosaic([scene(rng) for _ in range(4)], SIDE, rng)
    assert merged.image_bgr.shape == (2 * SIDE, 2 * SIDE, 3)
    seen = 0
    for person in merged.keypoints_xyv:
        for (x, y, v), colour in zip(person, COLOURS_BGR, strict=True):
            if v > 0:
                assert tuple(merged.image_bgr[int(y), int(x)]) == colour
                seen += 1
    assert seen >= 6


def test_keypoints_that_leave_the_image_become_unlabelled() -> None:
    rng = np.random.default_rng(0)
    before = scene(rng)
    before.keypoints_xyv[0, 0, :2] = (-3, 20)
    warped = warp(before, SIDE, Augment(translate_fraction=0, scale_fraction=0.0001), rng)
    assert (warped.keypoints_xyv[0, 0] == 0).all()
    assert (warped.keypoints_xyv[0, 1:, 2] == (2, 1)).all()


def test_persons_of_whom_little_is_left_go() -> None:
    rng = np.random.default_rng(0)
    before = scene(rng)
    before.boxes_xyxy[0] = (-95, 20, 5, 60)  # 5 of 100 px inside
    assert len(warp(before, SIDE, Augment(translate_fraction=0, scale_fraction=0.0001), rng).class_ids) == 0


def test_colour_shift_moves_no_person_and_stays_near() -> None:
    before = scene(np.random.default_rng(0))
    after = shift_colour(before, Augment(), np.random.default_rng(1))
    np.testing.assert_array_equal(after.keypoints_xyv, before.keypoints_xyv)
    assert not np.array_equal(after.image_bgr, before.image_bgr)
    assert np.abs(after.image_bgr.astype(int).mean() - before.image_bgr.mean()) < 60
