"""Slices in words."""

import pytest

from posefoundry.evaluation.wording import where


@pytest.mark.parametrize(
    ("slice_name", "words"),
    [
        ("all", ""),
        ("keypoint=left_wrist&size=small", " at the left wrist of small persons"),
        ("visibility=occluded", " at occluded keypoints"),
        ("keypoint=nose&visibility=visible", " at the visible nose"),
        ("keypoint=3", " at keypoint 3"),
        ("size=large&truncation=truncated", " of large persons cut off by the border"),
        ("truncation=whole", " of persons wholly in the picture"),
        ("class=dog&size=small", " of small persons of class dog"),
        ("persons=1", " in images of 1 person"),
        ("persons=4+&size=small", " of small persons in images of 4 or more persons"),
        ("corrected=yes", " in corrected images"),
        ("keypoint=nose&camera=north&site=hall_2", " at the nose in images with camera north and site hall_2"),
    ],
)
def test_slices_are_read_aloud(slice_name, words):
    assert where(slice_name) == words
