"""Persons travel with their pixels: every augmentation moves a coloured dot exactly where it says the keypoint went."""

import cv2
import numpy as np
import pytest

from posefoundry.config import Augment
from posefoundry.training.augment import (
    Scene,
    apply_affine,
    apply_homography,
    blur,
    cut_out,
    hide_under,
    mirror,
    mirror_upside_down,
    shift_colour,
    warp,
)

SIDE = 160
FLIP = (0, 2, 1)
COLOURS_BGR = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
WARPS = {
    "affine": Augment(rotate_degrees=25, translate_fraction=0.1, scale_fraction=0.3),
    "shear": Augment(shear_degrees=20, translate_fraction=0, scale_fraction=0),
    "perspective": Augment(perspective_fraction=0.3, translate_fraction=0, scale_fraction=0),
    "all": Augment(
        rotate_degrees=180, shear_degrees=15, perspective_fraction=0.25, translate_fraction=0.2, scale_fraction=0.4
    ),
}


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


@pytest.mark.parametrize("kind", WARPS)
@pytest.mark.parametrize("seed", range(8))
def test_warp_keeps_keypoints_on_their_pixels(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    warped = warp(scene(rng), SIDE, WARPS[kind], rng)
    assert warped.image_bgr.shape == (SIDE, SIDE, 3)
    expected_v = np.array([2, 2, 1])
    for keypoints, box in zip(warped.keypoints_xyv, warped.boxes_xyxy, strict=True):
        for (x, y, v), usual_v, colour in zip(keypoints, expected_v, COLOURS_BGR, strict=True):
            if v == 0:
                continue
            assert v == usual_v
            assert box[0] <= x <= box[2] and box[1] <= y <= box[3]
            if min(x, y, SIDE - x, SIDE - y) > 8:  # the whole dot is in the image
                # A tilted dot's centre of mass is not quite the image of its centre.
                tolerance_px = 0.6 if WARPS[kind].perspective_fraction else 0.2
                np.testing.assert_allclose((x, y), dot_xy(warped.image_bgr, colour), atol=tolerance_px)


def test_half_a_turn_moves_each_pixel_to_its_opposite_and_keypoints_with_it() -> None:
    # What is wrong by a fraction of a pixel for small angles is wrong by twice that here, and no resampling hides it.
    before = scene(np.random.default_rng(0))
    half_turn = np.array([[-1.0, 0, SIDE], [0, -1, SIDE], [0, 0, 1]])
    for after in (apply_affine(before, half_turn[:2], SIDE), apply_homography(before, half_turn, SIDE)):
        np.testing.assert_array_equal(after.image_bgr, before.image_bgr[::-1, ::-1])
        np.testing.assert_allclose(after.keypoints_xyv[..., :2], SIDE - before.keypoints_xyv[..., :2], atol=1e-4)
        np.testing.assert_allclose(after.boxes_xyxy, SIDE - before.boxes_xyxy[:, [2, 3, 0, 1]], atol=1e-4)


@pytest.mark.parametrize("kind", WARPS)
def test_what_leaves_the_image_is_not_labelled_and_what_stays_is(kind: str) -> None:
    leaving = staying = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        before = scene(rng)
        before.keypoints_xyv[0, 0, :2] = (3, 3)  # where nearly every warp pushes it out, or not
        cv2.circle(before.image_bgr, (2, 2), 2, (255, 255, 255), -1)
        warped = warp(before, SIDE, WARPS[kind], rng)
        is_seen = (warped.image_bgr.min(-1) > 200).any()
        if not len(warped.keypoints_xyv):
            continue
        x, y, v = warped.keypoints_xyv[0, 0]
        if v:
            staying += 1
            assert 0 <= x <= SIDE and 0 <= y <= SIDE
            assert is_seen or min(x, y, SIDE - x, SIDE - y) < 3
        else:
            leaving += 1
            assert x == y == 0
    assert leaving > 3 and staying > 3


@pytest.mark.parametrize("kind", WARPS)
def test_zoom_makes_the_same_picture_at_another_size(kind: str) -> None:
    before = scene(np.random.default_rng(0))
    usual = warp(before, SIDE, WARPS[kind], np.random.default_rng(3))
    larger = warp(before, SIDE * 2, WARPS[kind], np.random.default_rng(3), zoom=2)
    np.testing.assert_allclose(larger.keypoints_xyv[..., :2], usual.keypoints_xyv[..., :2] * 2, atol=1e-3)
    np.testing.assert_allclose(larger.boxes_xyxy, usual.boxes_xyxy * 2, atol=1e-3)
    shrunk = cv2.resize(larger.image_bgr, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - usual.image_bgr).mean() < 3


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


def test_mirror_upside_down_exchanges_left_and_right_too() -> None:
    before = scene(np.random.default_rng(0))
    after = mirror_upside_down(before, FLIP)
    for index, source in enumerate(FLIP):
        np.testing.assert_allclose(
            after.keypoints_xyv[0, index, :2], dot_xy(after.image_bgr, COLOURS_BGR[source]), atol=0.3
        )
    np.testing.assert_allclose(mirror_upside_down(after, FLIP).boxes_xyxy, before.boxes_xyxy, atol=1e-4)
    # Mirrored twice, once each way, is turned by half a turn: left stays left.
    turned = mirror(after, FLIP)
    np.testing.assert_allclose(turned.keypoints_xyv[0, 1, :2], SIDE - before.keypoints_xyv[0, 1, :2], atol=1e-4)


def test_mirror_leaves_unlabelled_keypoints_at_zero() -> None:
    before = scene(np.random.default_rng(0))
    before.keypoints_xyv[0, 1] = 0
    assert (mirror(before, FLIP).keypoints_xyv[0, 2] == 0).all()


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


@pytest.mark.parametrize("seed", range(6))
def test_blur_moves_no_dot(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = scene(rng)
    after = blur(before, rng)
    assert not np.array_equal(after.image_bgr, before.image_bgr)
    np.testing.assert_array_equal(after.boxes_xyxy, before.boxes_xyxy)
    for keypoint, colour in zip(after.keypoints_xyv[0], COLOURS_BGR, strict=True):
        np.testing.assert_allclose(keypoint[:2], dot_xy(after.image_bgr, colour), atol=0.35)


def test_cutout_hides_the_keypoints_that_it_covers_and_no_others() -> None:
    hidden = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        before = scene(rng)
        before.keypoints_xyv[..., 2] = 2
        after = cut_out(before, rng)
        changed = (after.image_bgr != before.image_bgr).any(-1)
        assert 0 < changed.mean() < 0.4
        for person in after.keypoints_xyv:
            np.testing.assert_array_equal(person[:, :2], before.keypoints_xyv[0, :, :2])
            for x, y, v in person:
                assert v == (1 if changed[int(y), int(x)] else 2)
                hidden += int(v == 1)
    assert hidden > 10


def test_cutout_of_an_image_without_persons() -> None:
    empty = scene(np.random.default_rng(0)).select(np.zeros(1, bool))
    after = cut_out(empty, np.random.default_rng(1))
    assert len(after.class_ids) == 0
    assert not np.array_equal(after.image_bgr, empty.image_bgr)


@pytest.mark.parametrize(
    ("covered_rows", "visibilities", "left"),
    [
        (0.0, (2, 2, 1), True),
        (0.85, (2, 0, 0), True),
        (0.95, (1, 1, 0), False),  # a twentieth of the box shows
        (0.6, (1, 1, 0), True),  # nothing that was visible is lost
        (0.6, (2, 1, 0), False),  # the only visible keypoint, at a tenth from the top, is
        (0.05, (2, 1, 0), True),
    ],
)
def test_a_covered_person_goes_when_it_hardly_shows(
    covered_rows: float, visibilities: tuple[int, int, int], left: bool
) -> None:
    before = scene(np.random.default_rng(0))
    before.boxes_xyxy[0] = (40, 40, 80, 140)
    before.keypoints_xyv[0] = [[60, 50 if covered_rows < 0.8 else 135, visibilities[0]], [60, 70, visibilities[1]],
                               [60, 90, visibilities[2]]]  # fmt: skip
    covered = np.zeros((SIDE, SIDE), np.uint8)
    covered[: 40 + round(100 * covered_rows)] = 1 if covered_rows else 0
    assert len(hide_under(before, covered).class_ids) == int(left)
