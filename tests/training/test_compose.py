"""Several images in one: a keypoint that is called visible lies on a dot of its colour, a hidden one does not."""

import cv2
import numpy as np
import pytest

from posefoundry.training.augment import Scene
from posefoundry.training.compose import mix_up, mosaic, paste_person, pasteable

SIDE = 160
COLOURS_BGR = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def scene(rng: np.random.Generator, shift_px: float = 0) -> Scene:
    """One person with three keypoints, each a dot of its own colour on grey."""
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    points = np.array([[0.35, 0.35], [0.65, 0.4], [0.5, 0.68]]) * SIDE + rng.uniform(-4, 4, (3, 2)) + shift_px
    for (x, y), colour in zip(points, COLOURS_BGR, strict=True):
        cv2.circle(image, (round((x - 0.5) * 16), round((y - 0.5) * 16)), 4 * 16, colour, -1, cv2.LINE_AA, shift=4)
    keypoints = np.column_stack([points, [2, 2, 2]])[None].astype(np.float32)
    box = np.array([[*(points.min(0) - 5), *(points.max(0) + 5)]], np.float32)
    return Scene(image, np.zeros(1, np.int64), box, keypoints)


def shows(image_bgr: np.ndarray, x: float, y: float, colour: tuple[int, int, int]) -> bool:
    """Tells whether the pixel at a point is more of a dot's colour than of anything else."""
    pixel = image_bgr[min(int(y), len(image_bgr) - 1), min(int(x), image_bgr.shape[1] - 1)].astype(int)
    channel = int(np.argmax(colour))
    return bool(pixel[channel] > np.delete(pixel, channel).max() + 30)


def dot_near_xy(image_bgr: np.ndarray, x: float, y: float, colour: tuple[int, int, int]) -> np.ndarray:
    """Returns the centre of mass of what is of a colour within 7 px of a point."""
    left, top = int(x) - 7, int(y) - 7
    around = image_bgr[top : top + 15, left : left + 15].astype(float)
    channel = int(np.argmax(colour))
    weight = (around[..., channel] - np.delete(around, channel, -1).max(-1)).clip(0)
    rows, columns = np.mgrid[: weight.shape[0], : weight.shape[1]] + 0.5
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum() + (left, top)


@pytest.mark.parametrize("seed", range(4))
def test_mosaic_keeps_keypoints_on_their_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    merged = mosaic([scene(rng) for _ in range(4)], SIDE, rng)
    assert merged.image_bgr.shape == (2 * SIDE, 2 * SIDE, 3)
    seen = 0
    for box, person in zip(merged.boxes_xyxy, merged.keypoints_xyv, strict=True):
        for (x, y, v), colour in zip(person, COLOURS_BGR, strict=True):
            if v > 0 and min(x, y, 2 * SIDE - x, 2 * SIDE - y) > 8:  # the whole dot is in the image
                np.testing.assert_allclose((x, y), dot_near_xy(merged.image_bgr, x, y, colour), atol=0.2)
                seen += 1
        if (person[:, 2] > 0).all():  # drawn with a margin of 5 px, which the canvas may cut
            around = [*(person[:, :2].min(0) - 5), *(person[:, :2].max(0) + 5)]
            np.testing.assert_allclose(box, np.clip(around, 0, 2 * SIDE), atol=1e-3)
    assert seen >= 6


@pytest.mark.parametrize("seed", range(6))
def test_mixup_shows_the_persons_of_both(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mixed = mix_up(scene(rng), scene(rng, shift_px=18), rng)
    assert mixed.image_bgr.shape == (SIDE, SIDE, 3)
    assert len(mixed.class_ids) == len(mixed.boxes_xyxy) == 2
    for person in mixed.keypoints_xyv:
        for (x, y, v), colour in zip(person, COLOURS_BGR, strict=True):
            assert v == 2
            assert shows(mixed.image_bgr, x, y, colour)


def test_pasted_persons_and_those_below_are_labelled_as_they_show() -> None:
    pasted = hidden = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        below, donor = scene(rng), scene(rng)
        result = paste_person(below, donor, rng)
        pasted += len(result.class_ids) - 1
        for box, person in zip(result.boxes_xyxy, result.keypoints_xyv, strict=True):
            assert (box[:2] >= 0).all() and (box[2:] <= SIDE).all()
            for (x, y, v), colour in zip(person, COLOURS_BGR, strict=True):
                assert box[0] < x < box[2] and box[1] < y < box[3]
                # A keypoint under the soft edge may be called either.
                assert shows(result.image_bgr, x, y, colour) == (v == 2) or _is_near_an_edge(result, x, y)
                hidden += int(v == 1)
        own = result.keypoints_xyv[-1]
        if len(result.class_ids) == 2:
            for (x, y, v), colour in zip(own, COLOURS_BGR, strict=True):
                assert v == 2
                assert shows(result.image_bgr, x, y, colour)
            scale_xy = np.ptp(own[:, :2], axis=0) / np.ptp(donor.keypoints_xyv[0, :, :2], axis=0)
            assert 0.5 < scale_xy.min() <= scale_xy.max() < 1.5
    assert pasted > 25
    assert hidden > 10


def _is_near_an_edge(result: Scene, x: float, y: float) -> bool:
    over = result.boxes_xyxy[-1]
    return bool(min(abs(x - over[0]), abs(x - over[2]), abs(y - over[1]), abs(y - over[3])) < 6)


def test_pasting_covers_nobody_by_more_than_half() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        below = scene(rng)
        result = paste_person(below, scene(rng), rng)
        if len(result.class_ids) == 2:
            before, over = result.boxes_xyxy
            shared = (np.minimum(before[2:], over[2:]) - np.maximum(before[:2], over[:2])).clip(0).prod()
            assert shared <= 0.5 * (before[2:] - before[:2]).prod() + 1e-3


def test_the_donor_stays_as_it_is_and_so_does_a_scene_without_a_fit_donor() -> None:
    rng = np.random.default_rng(0)
    below, donor = scene(rng), scene(rng)
    kept = donor.image_bgr.copy(), donor.keypoints_xyv.copy(), below.image_bgr.copy()
    paste_person(below, donor, rng)
    for array, copy in zip((donor.image_bgr, donor.keypoints_xyv, below.image_bgr), kept, strict=True):
        np.testing.assert_array_equal(array, copy)
    donor.keypoints_xyv[0, :2] = 0  # one of three keypoints is labelled
    assert paste_person(below, donor, rng) is below
    assert paste_person(below, donor.select(np.zeros(1, bool)), rng) is below


def test_only_persons_who_stand_alone_and_are_well_labelled_are_pasted() -> None:
    boxes = np.array([[0, 0, 10, 10], [9, 0, 19, 10], [30, 0, 40, 10], [32, 0, 42, 10], [60, 0, 70, 10]], np.float32)
    keypoints = np.zeros((5, 4, 3), np.float32)
    keypoints[:, :2, 2] = 1
    keypoints[4, 1, 2] = 0
    assert pasteable(boxes, keypoints).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("seed", range(4))
def test_everything_works_without_persons(seed: int) -> None:
    rng = np.random.default_rng(seed)
    empty = [scene(rng).select(np.zeros(1, bool)) for _ in range(4)]
    for result in (mosaic(empty, SIDE, rng), mix_up(empty[0], empty[1], rng), paste_person(empty[0], empty[1], rng)):
        assert len(result.class_ids) == len(result.boxes_xyxy) == len(result.keypoints_xyv) == 0
    onto_nobody = paste_person(empty[0], scene(rng), rng)
    assert len(onto_nobody.class_ids) == 1
