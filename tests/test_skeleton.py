"""The COCO skeleton against pycocotools and the published flip table; own skeletons and their faults."""

import numpy as np
import pytest

from posefoundry.errors import PosefoundryError
from posefoundry.skeleton import COCO_PERSON, Skeleton


def test_coco_sigmas_are_those_of_pycocotools() -> None:
    from pycocotools.cocoeval import Params

    np.testing.assert_array_equal(COCO_PERSON.sigmas, Params("keypoints").kpt_oks_sigmas)


def test_coco_flip_table() -> None:
    # Origin: flip_idx of the published coco-pose.yaml.
    assert COCO_PERSON.flip_indices == (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
    assert len(COCO_PERSON.edges) == 19
    assert (0, 1) in COCO_PERSON.edges


def test_own_names() -> None:
    horse = Skeleton.from_names(["muzzle", "left_hoof", "right_hoof", "leftover"], [(0, 1)])
    assert horse.flip_indices == (0, 2, 1, 3)
    assert horse.sigmas == (0.25,) * 4


def test_names_that_do_not_tell_left_from_right_take_stated_flip_partners() -> None:
    category = {"keypoints": ["l_wing", "r_wing", "beak"], "flip_idx": [1, 0, 2]}
    assert Skeleton.from_coco_category(category).flip_indices == (1, 0, 2)
    with pytest.raises(PosefoundryError, match="pairwise"):
        Skeleton.from_coco_category(category | {"flip_idx": [1, 2, 0]})


def test_round_trip() -> None:
    assert Skeleton.from_dict(COCO_PERSON.to_dict()) == COCO_PERSON


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoint_names": ("a", "a")}, "distinct keypoint names"),
        ({"keypoint_names": (), "flip_indices": (), "sigmas": ()}, "distinct keypoint names"),
        ({"flip_indices": (0, 0)}, "flip_indices must exchange"),
        ({"flip_indices": (1, 2)}, "flip_indices must exchange"),
        ({"sigmas": (0.1,)}, "2 positive sigmas"),
        ({"sigmas": (0.1, 0.0)}, "2 positive sigmas"),
        ({"edges": ((0, 2),)}, "Edges must name keypoints 0..1"),
    ],
)
def test_faults(changes: dict, message: str) -> None:
    proper = {"keypoint_names": ("a", "b"), "edges": (), "flip_indices": (0, 1), "sigmas": (0.1, 0.1)}
    with pytest.raises(PosefoundryError, match=message):
        Skeleton(**(proper | changes))
