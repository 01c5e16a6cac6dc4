"""What drawing promises: the input stays, the output shows the persons, nothing is too odd to draw."""

import numpy as np
import pytest

from posefoundry.inference.drawing import COLOURS, draw_poses
from posefoundry.inference.results import PoseResult
from posefoundry.skeleton import COCO_PERSON, Skeleton


def result(keypoints, box=(20, 10, 80, 90), size=(100, 100), score=0.9):
    keypoints = np.asarray(keypoints, np.float32)
    return PoseResult(
        boxes_xyxy=np.array([box], np.float32).repeat(len(keypoints), axis=0),
        scores=np.full(len(keypoints), score, np.float32),
        class_ids=np.zeros(len(keypoints), np.int64),
        keypoints_xyv=keypoints,
        image_size_hw=size,
        path=None,
        speed_ms={},
    )


def standing():
    keypoints = np.zeros((1, 17, 3), np.float32)
    keypoints[0, 7] = (70, 40, 1)  # left elbow
    keypoints[0, 9] = (70, 70, 1)  # left wrist
    keypoints[0, 8] = (30, 40, 1)
    keypoints[0, 10] = (30, 70, 0.1)  # right wrist, unsure
    return keypoints


def test_sides_have_their_colours_and_unsure_keypoints_stay_out():
    grey = np.full((100, 100, 3), 60, np.uint8)
    drawn = draw_poses(grey, result(standing()), COCO_PERSON)
    assert (grey == 60).all()
    # Thin lines are blended into their surroundings a little.
    np.testing.assert_allclose(drawn[55, 70], COLOURS["left", "arm"], atol=30)
    np.testing.assert_allclose(drawn[40, 30], COLOURS["right", "arm"], atol=30)
    assert (drawn[55, 30] == 60).all()
    shown = draw_poses(grey, result(standing()), COCO_PERSON, min_keypoint_confidence=0.05)
    np.testing.assert_allclose(shown[55, 30], COLOURS["right", "arm"], atol=30)


@pytest.mark.parametrize("box", [(0, 0, 100, 100), (0, 0, 0, 0), (99, 99, 100, 100), (-50, -50, 500, 500)])
@pytest.mark.parametrize("point", [(50, 50), (-1e9, 1e9), (float("nan"), 3)])
def test_nothing_is_too_odd_to_draw(box, point):
    keypoints = np.full((2, 17, 3), 1, np.float32)
    keypoints[..., :2] = point
    for size in ((100, 100), (1, 1), (3, 300)):
        drawn = draw_poses(np.zeros((*size, 3), np.uint8), result(keypoints, box, size), COCO_PERSON)
        assert drawn.shape == (*size, 3)


def test_other_skeletons_and_nobody():
    skeleton = Skeleton.from_names(["left_tip", "right_tip", "base"], [(0, 2), (1, 2)])
    keypoints = np.array([[[20, 20, 1], [80, 20, 1], [50, 80, 1]]], np.float32)
    blank = np.zeros((100, 100, 3), np.uint8)
    assert draw_poses(blank, result(keypoints), skeleton).any()
    assert not draw_poses(blank, result(keypoints[:0]), skeleton).any()
