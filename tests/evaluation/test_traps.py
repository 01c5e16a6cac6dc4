"""What COCO's rules say of odd data, each by a figure that can be followed on paper and by pycocotools."""

import numpy as np
import pytest

from posefoundry.evaluation.oks import OksEvaluator
from posefoundry.skeleton import COCO_SIGMAS

NOBODY = [0] * 51
# One wrong detection before the only right one: precision 1/2 at all recalls. Before one of two: up to recall 1/2.
HALF, HALF_OF_HALF = 0.5, 0.5 * 51 / 101


@pytest.fixture
def judged(arbiter):
    """Judges, and sees to it that pycocotools finds the same."""

    def act(content, detections):
        got = OksEvaluator(content, sigmas=COCO_SIGMAS).evaluate(detections)
        assert got == pytest.approx(arbiter(content, detections, COCO_SIGMAS)[0], abs=1e-9)
        return got

    return act


@pytest.mark.parametrize("region", [{"iscrowd": 1}, {"keypoints": NOBODY, "num_keypoints": 0}, {"num_keypoints": 0}])
def test_who_must_not_be_found_may_be(judged, person, detection, coco, region):
    seen, beside = person(7, 1, 10, 10, 50, 100), person(8, 1, 300, 10, 50, 100)
    detections = [detection(beside, 0.9), detection(seen, 0.5)]
    assert judged(coco([seen, beside | region]), detections)["oks_ap"] == pytest.approx(1.0)
    assert judged(coco([seen]), detections)["oks_ap"] == pytest.approx(HALF)


def test_a_crowd_forgives_many_and_an_unlabelled_person_one(judged, person, detection, coco):
    seen, beside = person(7, 1, 10, 10, 50, 100), person(8, 1, 300, 10, 50, 100)
    detections = [detection(beside, 0.9), detection(beside, 0.8), detection(seen, 0.5)]
    crowd, unlabelled = beside | {"iscrowd": 1}, beside | {"keypoints": NOBODY, "num_keypoints": 0}
    assert judged(coco([seen, crowd]), detections)["oks_ap"] == pytest.approx(1.0)
    assert judged(coco([seen, unlabelled]), detections)["oks_ap"] == pytest.approx(HALF)


def test_a_crowd_is_not_taken_where_a_person_is_left(judged, person, detection, coco):
    seen = person(7, 1, 10, 10, 50, 100)
    crowd = person(8, 1, 10, 10, 50, 100) | {"iscrowd": 1}
    for persons in ([seen, crowd], [crowd, seen]):
        assert judged(coco(persons), [detection(seen, shift_xy=(1, 1))])["oks_ar50"] == 1.0


def test_keypoints_that_are_counted_but_not_there_are_looked_for_in_twice_the_box(judged, person, detection, coco):
    stated = person(7, 1, 100, 100, 50, 100) | {"keypoints": NOBODY, "num_keypoints": 3}
    assert judged(coco([stated]), [detection(person(7, 1, 60, 20, 50, 100))])["oks_ap"] == pytest.approx(1.0)
    assert judged(coco([stated]), [detection(person(7, 1, 400, 300, 50, 100))])["oks_ap"] == 0.0


def test_the_same_detection_twice_is_one_too_many(judged, person, detection, coco):
    one, two = person(7, 1, 10, 10, 50, 100), person(8, 1, 300, 10, 50, 100)
    metrics = judged(coco([one, two]), [detection(one, 0.9), detection(one, 0.8), detection(two, 0.7)])
    # Right, wrong, right: precision 1 up to recall 1/2 (51 of 101 levels), 2/3 beyond.
    assert metrics["oks_ap"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_the_order_of_the_list_does_not_matter_where_scores_differ(judged, crowd_scene):
    content, detections = crowd_scene
    for rank, entry in enumerate(detections):
        entry["score"] = (rank * 37 % 101 + 1) / 200
    assert len({entry["score"] for entry in detections}) == len(detections) > 20
    first = judged(content, detections)
    for order in (
        np.argsort([entry["score"] for entry in detections]),
        np.random.default_rng(0).permutation(len(detections)),
    ):
        assert judged(content, [detections[i] for i in order]) == first


def test_equal_scores_rank_by_image_and_then_as_they_stand(judged, person, detection, coco):
    one, two = person(7, 1, 10, 10, 50, 100), person(8, 2, 300, 100, 50, 100)
    right, wrong = detection(one, 0.5), detection(one, 0.5, (250, 200))
    assert judged(coco([one]), [right, wrong])["oks_ap"] == pytest.approx(1.0)
    assert judged(coco([one]), [wrong, right])["oks_ap"] == pytest.approx(HALF)
    of_second = detection(two, 0.5, (-250, -50))  # image 2 comes after image 1, wherever it stands
    assert judged(coco([one, two]), [of_second, right])["oks_ap"] == pytest.approx(51 / 101)
    assert judged(coco([one, two]), [detection(two, 0.5), wrong])["oks_ap"] == pytest.approx(HALF_OF_HALF)


def test_of_equal_scores_the_first_twenty_count(judged, person, detection, coco):
    one = person(7, 1, 10, 10, 50, 100)
    wrong = [detection(one, 0.5, (250, 0)) for _ in range(20)]
    assert judged(coco([one]), [*wrong[1:], detection(one, 0.5)])["oks_ar"] == 1.0
    assert judged(coco([one]), [*wrong, detection(one, 0.5)])["oks_ar"] == 0.0


def test_images_in_any_order_and_images_with_nobody(judged, person, detection, coco):
    people = [person(7, 3, 10, 10, 50, 100), person(8, 1, 300, 10, 120, 240)]
    content = coco(people, 4)
    content["images"].reverse()
    beside = detection(people[0], 0.95) | {"image_id": 4}
    assert judged(content, [detection(people[0]), detection(people[1], 0.8)])["oks_ap"] == pytest.approx(1.0)
    assert judged(content, [beside, detection(people[0]), detection(people[1], 0.8)])["oks_ap"] == pytest.approx(2 / 3)


def test_names_with_the_sign_that_joins_slices_are_written_otherwise(person, coco):
    content = coco([person(7, 1, 10, 10, 50, 100)])
    content["categories"] = [content["categories"][0] | {"name": "men & women"}]
    tags = {"site": ["A&B", "A=B"]}
    slices = OksEvaluator(content, sigmas=COCO_SIGMAS, tags=tags).evaluate_in_detail([]).slices
    assert {"class=men + women", "site=A+B", "site=A=B"} <= set(slices)
