"""PCK, PCKh and distances, against figures that can be followed on paper."""

import numpy as np
import pytest

from posefoundry.config import Evaluate
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.oks import OksEvaluator
from posefoundry.evaluation.pck import check_reference, place, placement_figures
from posefoundry.evaluation.slice_table import slice_rows
from posefoundry.skeleton import COCO_KEYPOINT_NAMES, COCO_SIGMAS

SETTINGS = Evaluate()


def figures(content, detections, settings=SETTINGS, name="all", sigmas=COCO_SIGMAS):
    evaluator = OksEvaluator(content, sigmas=sigmas, crossed=settings.crossed_slices)
    evaluation = evaluator.evaluate_in_detail(detections)
    placement = place(evaluation, evaluator.keypoint_names, settings.pck_reference)
    population = evaluation.slicer.population(name)
    return placement_figures(placement, population, evaluation.truth.image, settings)


def test_pck_counts_keypoints_within_a_part_of_the_box(person, detection, coco):
    # The box is 50 x 100, so its longer side 100: within .05 are 5 px, within .1 10 px, within .2 20 px.
    truth = person(1, 1, 100, 100, 50, 100)
    found = detection(truth)
    for k, off_px in ((0, 5), (1, 7), (2, 15), (3, 30)):
        found["keypoints"][3 * k] += off_px
    result = figures(coco([truth]), [found])
    assert result["pck_0.05"] == pytest.approx(14 / 17)
    assert result["pck_0.1"] == pytest.approx(15 / 17)
    assert result["pck_0.2"] == pytest.approx(16 / 17)
    assert result["pckh_0.5"] is None, "COCO's skeleton has no top of the head"
    assert result["mean_error_px"] == pytest.approx((5 + 7 + 15 + 30) / 17)
    assert result["normalised_error"] == pytest.approx((5 + 7 + 15 + 30) / 17 / 100)


def test_pck_by_the_torso_is_from_a_shoulder_to_the_opposite_hip(person, detection, coco):
    # Left shoulder (.68, .20), right hip (.38, .52), in a box of 50 x 100: (15, -32) px apart.
    truth = person(1, 1, 100, 100, 50, 100)
    torso = float(np.hypot(15, 32))
    found = detection(truth)
    found["keypoints"][0] += 0.19 * torso
    found["keypoints"][3] += 0.21 * torso
    by_torso = Evaluate(pck_reference="torso", pck_thresholds=(0.2,))
    assert figures(coco([truth]), [found], by_torso)["pck_0.2"] == pytest.approx(16 / 17)
    # The other diagonal is as long; without either there is no torso, and nothing to measure by.
    for k in (6, 11):
        truth["keypoints"][3 * k + 2] = 0
    assert figures(coco([truth]), [found], by_torso)["pck_0.2"] == pytest.approx(14 / 15)
    truth["keypoints"][3 * 5 + 2] = 0
    unmeasured = figures(coco([truth]), [found], by_torso)
    assert unmeasured["pck_0.2"] is None and unmeasured["normalised_error"] is None
    assert unmeasured["mean_error_px"] == pytest.approx(0.4 * torso / 14)


def test_a_torso_is_refused_where_the_skeleton_has_none():
    check_reference("torso", COCO_KEYPOINT_NAMES)
    check_reference("box", ("wheel",))
    with pytest.raises(PosefoundryError, match=r"left_shoulder and right_hip.*got wheel"):
        check_reference("torso", ("wheel",))


def test_pckh_goes_by_the_head(coco):
    names = ["head_top", "Upper neck", "left_wrist"]
    head, found = [50, 10, 2, 50, 30, 2, 10, 60, 2], [50, 10, 1, 50, 30, 1, 10, 69, 1]
    truth = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "area": 5000.0, "keypoints": head}
    content = coco([truth]) | {"categories": [{"id": 1, "name": "person", "keypoints": names}]}
    result = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "score": 0.9, "keypoints": found}
    # The head is 20 px, so half of it 10 px; the wrist is 9 px off.
    assert figures(content, [result], sigmas=[0.1] * 3)["pckh_0.5"] == pytest.approx(1.0)
    strict = Evaluate(pckh_threshold=0.4)
    assert figures(content, [result], strict, sigmas=[0.1] * 3)["pckh_0.4"] == pytest.approx(2 / 3)


def test_the_keypoints_of_a_missed_person_are_wrong_and_have_no_distance(person, detection, coco):
    seen, missed = person(1, 1, 10, 10, 50, 100), person(2, 2, 10, 10, 50, 100)
    result = figures(coco([seen, missed]), [detection(seen, shift_xy=(3, 4)), detection(missed, 0.1)])
    assert result["pck_0.1"] == pytest.approx(0.5)
    assert result["mean_error_px"] == pytest.approx(5.0)


@pytest.mark.parametrize("detections", [[], None])
def test_nothing_is_measured_on_nobody(coco, person, detections):
    nothing = dict.fromkeys(["pck_0.05", "pck_0.1", "pck_0.2", "pckh_0.5", "mean_error_px", "normalised_error"])
    assert figures(coco([]), []) == nothing
    assert figures(coco([person(1, 1, 0, 0, 50, 100)]), []) == nothing | {
        "pck_0.05": 0.0, "pck_0.1": 0.0, "pck_0.2": 0.0,
    }  # fmt: skip


def test_a_row_for_each_slice_with_its_counts(person, detection, coco):
    # In image 1 two persons, one without a labelled nose and one with a hidden one; in image 2 one, who is missed.
    a, b, c = person(1, 1, 10, 10, 40, 80), person(2, 1, 300, 10, 100, 200), person(3, 2, 10, 10, 100, 200)
    a["keypoints"][2], b["keypoints"][2] = 0, 1
    found = [detection(a), detection(b, shift_xy=(6, 8))]
    settings = Evaluate(crossed_slices=("keypoint=nose&size=large",))
    content = coco([a, b, c], 3)
    evaluator = OksEvaluator(
        content, sigmas=COCO_SIGMAS, tags={"site": ["yard", "gate", None]}, crossed=settings.crossed_slices
    )
    evaluation = evaluator.evaluate_in_detail(found)
    rows = slice_rows(evaluation, place(evaluation, evaluator.keypoint_names, "box"), settings)
    by_name = {row["slice"]: row for row in rows}
    counts = {name: (row["images"], row["persons"], row["keypoints"]) for name, row in by_name.items()}
    assert counts["all"] == (2, 3, 50)
    assert counts["keypoint=nose"] == (2, 2, 2)
    assert counts["visibility=occluded"] == (1, 1, 1)
    assert counts["size=small"] == (0, 0, 0)
    assert counts["size=medium"] == (1, 1, 16)
    assert counts["persons=1"] == (1, 1, 17)
    assert counts["truncation=whole"] == (2, 3, 50)
    assert counts["class=person"] == (2, 3, 50)
    assert counts["site=yard"] == (1, 2, 33)
    assert counts["keypoint=nose&size=large"] == (2, 2, 2)
    assert by_name["size=small"].items() >= {"oks_ap": None, "oks_ar": None, "pck_0.1": None}.items()
    assert by_name["size=medium"]["oks_ap"] == pytest.approx(1.0)
    assert by_name["persons=1"].items() >= {"oks_ap": 0.0, "pck_0.1": 0.0, "mean_error_px": None}.items()
    crossed = by_name["keypoint=nose&size=large"]
    assert (crossed["group"], crossed["value"]) == ("keypoint&size", "nose, large")
    assert (crossed["pck_0.05"], crossed["mean_error_px"]) == (pytest.approx(0.5), pytest.approx(10.0))
    whole = by_name["all"]
    assert (whole["group"], whole["value"], whole["oks_ap"]) == ("all", None, evaluation.metrics["oks_ap"])
