"""What a gate shows of two models beside its verdict."""

from dataclasses import replace

import numpy as np
from gate_rules import SAME, resampled

from posefoundry.evaluation.comparison import changed_images, differences
from posefoundry.evaluation.oks import OksEvaluator
from posefoundry.skeleton import COCO_SIGMAS


def test_images_change_by_persons_and_by_what_is_seen_where_nobody_is(person, detection, coco):
    people = [person(i, i, 100, 100, 50, 100) for i in (1, 2, 3)]
    evaluator = OksEvaluator(coco(people, 5), sigmas=COCO_SIGMAS)
    nobody = [person(0, image, 300, 100, 50, 100) for image in (2, 5)]
    before = [detection(people[0]), detection(people[1])]
    now = [detection(p) for p in people] + [detection(p) for p in nobody]
    candidate, production = evaluator.evaluate_in_detail(now), evaluator.evaluate_in_detail(before)
    changed = changed_images(evaluator, candidate, production)
    # In image 3 a person is found, in 5 nobody is and somebody is seen, in 2 somebody too many; 1 and 4 are as before.
    assert [row["image_id"] for row in changed["better"]] == [3]
    assert [row["image_id"] for row in changed["worse"]] == [5, 2]
    assert changed["worse"][0] == {
        "image_id": 5, "file_name": "005.png",
        "candidate": {"score": 0.0, "mean_oks": None, "false_positives": 1},
        "production": {"score": 1.0, "mean_oks": None, "false_positives": 0},
    }  # fmt: skip
    assert changed["worse"][1]["candidate"] == {"score": 0.5, "mean_oks": 1.0, "false_positives": 1}
    assert changed_images(evaluator, production, candidate)["better"][0]["image_id"] == 5


def test_differences_are_proven_by_their_corrected_p_value():
    slices = {"all": (0.03, 400), "size=small": (-0.05, 400), "size=large": (0.024, 400), "site=hall": (-0.3, 19)}
    rows = differences({name: resampled(d, 0.01, images=n) for name, (d, n) in slices.items()}, 0.95)
    assert {row["slice"]: row["proven"] for row in rows} == {
        "all": "better", "size=small": "worse", "size=large": "better", "site=hall": None,
    }  # fmt: skip
    many = {f"keypoint={i}": resampled(0.002, 0.01) for i in range(18)}
    many |= {"keypoint=0": resampled(0.05, 0.01), "keypoint=17": resampled(0.024, 0.01)}
    proven = {row["slice"]: row["proven"] for row in differences(many, 0.95)}
    assert (proven["keypoint=0"], proven["keypoint=17"], proven["keypoint=3"]) == ("better", None, None)
    [row] = differences({"all": SAME}, 0.95)
    assert row["proven"] is None and row["interval"] == (0, 0)


def test_the_side_of_a_proven_difference_is_that_of_its_interval():
    below = resampled(-0.03, 0.005)
    observed_above = replace(below, candidate=np.full(10, 0.5), production=np.full(10, 0.49))
    [row] = differences({"all": observed_above}, 0.95)
    assert row["difference"] > 0 > row["interval"][1]
    assert row["proven"] == "worse"
