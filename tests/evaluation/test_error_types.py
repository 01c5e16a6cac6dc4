"""Kinds of error: one planted of each, and what it costs."""

import numpy as np
import pytest

from posefoundry.evaluation.error_types import KEYPOINT_TYPES, diagnose
from posefoundry.evaluation.oks import OksEvaluator
from posefoundry.skeleton import COCO_KEYPOINT_NAMES, COCO_SIGMAS

NOSE, LEFT_WRIST, RIGHT_WRIST = 0, 9, 10
NONE = dict.fromkeys((*KEYPOINT_TYPES, "background", "duplicate", "missed_person"), 0)
# Of a person of 10,000 px^2 the similarity of a wrist (sigma .062) is .85 at 7.1 px and .5 at 14.6 px.
TYPES = ("jitter", "inversion", "swap", "miss")


def diagnosis(content, detections):
    evaluation = OksEvaluator(content, sigmas=COCO_SIGMAS).evaluate_in_detail(detections)
    return diagnose(evaluation, COCO_KEYPOINT_NAMES)


@pytest.fixture
def pair(person, coco):
    """Two persons of 100 x 200 px side by side, 300 px apart."""
    people = [person(1, 1, 50, 50, 100, 200), person(2, 1, 350, 50, 100, 200)]
    return people, coco(list(people))


def at(entry, keypoint):
    return entry["keypoints"][3 * keypoint : 3 * keypoint + 2]


def put(detection, keypoint, x, y):
    detection["keypoints"][3 * keypoint : 3 * keypoint + 2] = [x, y]


def planted(kind, person, other, found):
    """Misplaces the left wrist."""
    x, y = at(person, LEFT_WRIST)
    place = {
        "jitter": (x + 10, y), "inversion": at(person, RIGHT_WRIST), "swap": at(other, LEFT_WRIST),
        "miss": (x + 80, y - 120),
    }[kind]  # fmt: skip
    put(found, LEFT_WRIST, *place)


def test_exact_detections_are_good_and_cost_nothing(pair, detection):
    people, content = pair
    result = diagnosis(content, [detection(p) for p in people])
    assert result["counts"] == NONE | {"good": 34}
    assert result["ap_lost"] == pytest.approx(dict.fromkeys([k for k in NONE if k != "good"], 0.0))
    assert set(result["by_keypoint"]) == set(COCO_KEYPOINT_NAMES)


@pytest.mark.parametrize("kind", TYPES)
def test_a_planted_error_is_named_and_costs_ap_of_its_kind_alone(kind, pair, detection):
    people, content = pair
    found = [detection(p) for p in people]
    planted(kind, *people, found[0])
    if kind == "jitter":  # alone it would leave OKS above .95
        put(found[0], RIGHT_WRIST, at(people[0], RIGHT_WRIST)[0] + 12, at(people[0], RIGHT_WRIST)[1])
        put(found[0], NOSE, at(people[0], NOSE)[0] + 5, at(people[0], NOSE)[1])
    result = diagnosis(content, found)
    assert result["by_keypoint"]["left_wrist"] == dict.fromkeys(KEYPOINT_TYPES, 0) | {kind: 1, "good": 1}
    assert result["counts"][kind] == (3 if kind == "jitter" else 1)
    assert result["counts"]["good"] == 34 - result["counts"][kind]
    assert {name for name, lost in result["ap_lost"].items() if lost > 1e-9} == {kind}


def test_the_loss_to_a_kind_is_what_the_evaluation_says_without_it(pair, detection):
    people, content = pair
    found = [detection(p) for p in people]
    planted("inversion", *people, found[0])
    put(found[0], NOSE, at(people[0], NOSE)[0] + 60, at(people[0], NOSE)[1])
    result = diagnosis(content, found)
    as_is = OksEvaluator(content, sigmas=COCO_SIGMAS).evaluate(found)["oks_ap"]
    for kind, keypoint in (("inversion", LEFT_WRIST), ("miss", NOSE)):
        better = [found[0] | {"keypoints": list(found[0]["keypoints"])}, found[1]]
        put(better[0], keypoint, *at(people[0], keypoint))
        without = OksEvaluator(content, sigmas=COCO_SIGMAS).evaluate(better)["oks_ap"]
        assert result["ap_lost"][kind] == pytest.approx(without - as_is, abs=1e-12)
        assert result["counts"][kind] == 1


def test_detections_of_nobody_duplicates_and_missed_persons(pair, detection):
    people, content = pair
    nobody, again = detection(people[0], 0.95, (0, 220)), detection(people[0], 0.92, (8, 0))
    result = diagnosis(content, [detection(people[0], 0.96), nobody, again, detection(people[1], 0.2)])
    assert result["counts"] == NONE | {"good": 17, "background": 1, "duplicate": 1, "missed_person": 1}
    assert result["ap_lost"]["background"] > 0.05 and result["ap_lost"]["duplicate"] > 0.05
    assert result["ap_lost"]["missed_person"] == 0, "AP sees the detection that no user sees"
    result = diagnosis(content, [detection(people[0])])
    # AP is the mean over 101 recalls, of which 51 are reached.
    assert result["ap_lost"]["missed_person"] == pytest.approx(1 - 51 / 101)


def test_crowds_and_unlabelled_keypoints_are_no_errors(pair, person, detection):
    people, content = pair
    crowd = person(3, 1, 50, 300, 300, 150) | {"iscrowd": 1, "num_keypoints": 0, "keypoints": [0] * 51}
    content["annotations"].append(crowd)
    people[0]["keypoints"][3 * NOSE + 2] = 0
    found = [detection(p) for p in people] + [detection(person(0, 1, 100 + i, 330, 50, 100), 0.9) for i in range(2)]
    put(found[0], NOSE, 600, 400)
    assert diagnosis(content, found)["counts"] == NONE | {"good": 33}


def test_nobody_to_find_loses_nothing(coco, person, detection):
    result = diagnosis(coco([]), [detection(person(1, 1, 50, 50, 100, 200))])
    assert result["counts"] == NONE | {"background": 1}
    assert set(result["ap_lost"].values()) == {None}
    assert diagnosis(coco([person(1, 1, 50, 50, 100, 200)]), [])["counts"] == NONE | {"missed_person": 1}


def test_a_busy_scene_adds_up(crowd_scene):
    content, detections = crowd_scene
    evaluation = OksEvaluator(content, sigmas=COCO_SIGMAS).evaluate_in_detail(detections)
    result = diagnose(evaluation, COCO_KEYPOINT_NAMES)
    counts = result["counts"]
    seen = sum(d["score"] >= 0.25 for d in detections)
    persons = sum(not a["iscrowd"] and a["num_keypoints"] > 0 for a in content["annotations"])
    matched = persons - counts["missed_person"]
    assert matched + counts["background"] + counts["duplicate"] <= seen, "the rest lies on those who are ignored"
    for kind in KEYPOINT_TYPES:
        assert sum(row[kind] for row in result["by_keypoint"].values()) == counts[kind]
    assert all(lost > -0.02 for lost in result["ap_lost"].values())
    assert np.isclose(result["ap_lost"]["miss"], 0) == (counts["miss"] == 0)
