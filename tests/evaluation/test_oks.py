"""OKS and box AP: against hand calculation, against pycocotools' own reading of the files, and against its traps."""

import contextlib
import copy
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.oks import (
    BOX_METRICS,
    OKS_METRICS,
    OksEvaluator,
    average,
    to_coco_results,
)
from posefoundry.skeleton import COCO_SIGMAS


def evaluate_detections(annotations, detections, sigmas):
    return OksEvaluator(annotations, sigmas=sigmas).evaluate(detections)


@pytest.fixture
def two_people(person, coco):
    """A medium person (area 50 * 100 / 2 = 2500 px^2) and a large one (120 * 240 / 2 = 14400 px^2)."""
    return coco([person(7, 1, 10, 10, 50, 100), person(8, 2, 300, 100, 120, 240)])


def test_the_ground_truth_as_prediction_scores_one(two_people, detection):
    metrics = evaluate_detections(two_people, [detection(a) for a in two_people["annotations"]], sigmas=COCO_SIGMAS)
    expected = dict.fromkeys((*OKS_METRICS, *BOX_METRICS), pytest.approx(1.0))
    assert metrics == expected | {"box_ap_s": None}


def test_disjoint_predictions_score_zero(two_people, detection):
    moved = [detection(a, shift_xy=(250, 0)) for a in two_people["annotations"]]
    metrics = evaluate_detections(two_people, moved, sigmas=COCO_SIGMAS)
    assert {key: value for key, value in metrics.items() if value is not None} == dict.fromkeys(
        [*OKS_METRICS, *(key for key in BOX_METRICS if key != "box_ap_s")], 0.0
    )


def test_a_middle_case_computed_by_hand(person, detection, coco):
    # One person of area 2500 px^2, all 17 keypoints found 5 px away: (3, 4). cocodataset.org/#keypoints-eval:
    #   OKS = mean over labelled keypoints of exp(-d^2 / (2 s^2 k^2)),  s^2 = area,  k = 2 sigma
    truth = person(7, 1, 10, 10, 50, 100)
    oks = sum(math.exp(-(5**2) / (2 * 2500 * (2 * sigma) ** 2)) for sigma in COCO_SIGMAS) / 17
    assert oks == pytest.approx(0.6470, abs=1e-4)
    evaluation = OksEvaluator(coco([truth]), sigmas=COCO_SIGMAS).evaluate_in_detail([detection(truth, shift_xy=(3, 4))])
    oks_found = evaluation.every_pair.oks(evaluation.truth.visibility > 0)
    assert oks_found.item() == pytest.approx(oks, abs=1e-12)
    # It is right at the thresholds .50, .55 and .60 of ten: AP 0.3. One person, one detection: AR the same.
    assert evaluation.metrics["oks_ap"] == pytest.approx(0.3)
    assert evaluation.metrics["oks_ap50"] == pytest.approx(1.0)
    assert evaluation.metrics["oks_ap75"] == 0.0
    assert evaluation.metrics["oks_ar"] == pytest.approx(0.3)
    # The box: moved by (3, 4), so IoU = 47 * 96 / (2 * 50 * 100 - 47 * 96) = 0.822: seven thresholds, .50 to .80.
    assert evaluation.metrics["box_ap"] == pytest.approx(0.7)


def test_a_confident_mistake_costs_precision(two_people, detection):
    # Highest score on nobody, then one of two persons exactly: precision 1/2 up to recall 1/2, which are 51 of the
    # 101 recall levels 0, .01, ... 1; nothing beyond.
    found, _ = two_people["annotations"]
    detections = [detection(found, 0.9, (250, 200)), detection(found, 0.8)]
    metrics = evaluate_detections(two_people, detections, sigmas=COCO_SIGMAS)
    assert metrics["oks_ap"] == pytest.approx(0.5 * 51 / 101)
    assert metrics["oks_ar"] == pytest.approx(0.5)


def test_equals_pycocotools_reading_the_same_files(crowd_scene, tmp_path):
    content, detections = crowd_scene
    for annotation in content["annotations"]:  # numbers from 1: with 0 pycocotools itself goes wrong, see below
        annotation["id"] += 1
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(detections))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(tmp_path / "truth.json")
        results = truth.loadRes(str(tmp_path / "results.json"))
        expected = {}
        for kind, keys in (("keypoints", OKS_METRICS), ("bbox", BOX_METRICS)):
            evaluation = COCOeval(truth, results, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            expected |= dict(zip(keys, evaluation.stats, strict=False))
    got = evaluate_detections(tmp_path / "truth.json", detections, sigmas=COCO_SIGMAS)
    assert got == pytest.approx(expected, abs=1e-12)
    assert 0.05 < got["oks_ap"] < 0.95, "the scene must be neither trivial nor hopeless"


def test_no_detections_score_zero_and_absent_sizes_nothing(person, coco):
    metrics = evaluate_detections(coco([person(7, 1, 10, 10, 50, 100)]), [], sigmas=COCO_SIGMAS)
    absent = {"oks_ap_l", "oks_ar_l", "box_ap_s", "box_ap_l"}
    assert metrics == {key: None if key in absent else 0.0 for key in (*OKS_METRICS, *BOX_METRICS)}


def test_an_empty_data_set_has_no_figures(coco):
    assert set(evaluate_detections(coco([]), [], sigmas=COCO_SIGMAS).values()) == {None}


def test_crowds_alone_have_no_figures(person, detection, coco):
    crowd = person(7, 1, 10, 10, 50, 100) | {"iscrowd": 1}
    assert set(evaluate_detections(coco([crowd]), [detection(crowd)], sigmas=COCO_SIGMAS).values()) == {None}


def test_persons_without_keypoints_count_for_boxes_only(person, detection, coco):
    seen, unlabelled = person(7, 1, 10, 10, 50, 100), person(8, 1, 300, 10, 50, 100)
    unlabelled |= {"keypoints": [0] * 51, "num_keypoints": 0}
    metrics = evaluate_detections(coco([seen, unlabelled]), [detection(seen)], sigmas=COCO_SIGMAS)
    assert metrics["oks_ap"] == pytest.approx(1.0)
    assert metrics["box_ap"] == pytest.approx(51 / 101)


def test_those_at_the_border_are_judged_apart(person, detection, coco):
    # Each slice ignores the other's person and what was found there: of two detections at the border before the one of
    # the person cut by it both are wrong, and so is the one before the person who is whole.
    cut, whole = person(1, 1, 0, 100, 50, 100), person(2, 1, 300, 100, 50, 100)
    nobody = [person(0, 1, *xy, 50, 100) for xy in ((500, 100), (590, 100), (400, 379.5))]
    scores = (0.97, 0.96, 0.95)
    found = [detection(p, score) for p, score in zip(nobody, scores, strict=True)]
    found += [detection(cut, 0.9), detection(whole, 0.8)]
    evaluation = OksEvaluator(coco([cut, whole]), sigmas=COCO_SIGMAS).evaluate_in_detail(found)
    slices = {name: evaluation.slices[f"truncation={name}"] for name in ("truncated", "whole")}
    assert average(slices["truncated"]) == pytest.approx(1 / 3)
    assert average(slices["whole"]) == pytest.approx(1 / 2)
    assert [average(slices[name], recall=True) for name in slices] == pytest.approx([1.0, 1.0])
    assert [int(slices[name][0].positives_of_image.sum()) for name in slices] == [1, 1]


def test_a_class_is_judged_as_if_there_were_no_other(person, detection, coco):
    player, referee = person(1, 1, 10, 10, 50, 100), person(2, 1, 200, 10, 50, 100) | {"category_id": 2}
    content = coco([player, referee])
    content["categories"] = [
        content["categories"][0] | {"id": c, "name": n} for c, n in ((1, "player"), (2, "referee"))
    ]
    wrong = detection(player, 0.99, (300, 200)) | {"category_id": 2}
    found = [detection(player, 0.9), detection(referee, 0.8), wrong]
    slices = OksEvaluator(content, sigmas=COCO_SIGMAS).evaluate_in_detail(found).slices
    assert average(slices["class=player"]) == pytest.approx(1.0)
    assert average(slices["class=referee"]) == pytest.approx(1 / 2)
    assert average(slices["all"]) == pytest.approx(3 / 4)


def test_iscrowd_and_num_keypoints_may_be_missing(two_people, person, detection):
    detections = [detection(a) for a in two_people["annotations"]]
    unlabelled = person(9, 2, 10, 10, 50, 100) | {"keypoints": [0] * 51}
    two_people["annotations"].append(unlabelled)  # counted: 0 labelled keypoints, so neither found nor missed
    for annotation in two_people["annotations"]:
        del annotation["iscrowd"], annotation["num_keypoints"]
    assert evaluate_detections(two_people, detections, sigmas=COCO_SIGMAS)["oks_ap"] == pytest.approx(1.0)


def test_a_person_with_id_zero_can_be_found(person, detection, coco):
    truth = person(0, 1, 10, 10, 50, 100)
    assert evaluate_detections(coco([truth]), [detection(truth)], sigmas=COCO_SIGMAS)["oks_ap"] == pytest.approx(1.0)


def test_four_keypoints_with_their_own_sigmas():
    # Area 100 px^2, all four points 2 px away: OKS = exp(-4 / (2 * 100 * (2 * 0.1)^2)) = exp(-0.5) = 0.607.
    truth = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 100}
    truth["keypoints"] = [0, 0, 2, 10, 0, 2, 10, 10, 1, 0, 10, 2]
    content = {"images": [{"id": 1}], "categories": [{"id": 3}], "annotations": [truth]}
    moved = [number + 2 * (i % 3 == 0) for i, number in enumerate(truth["keypoints"])]
    result = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "score": 0.5, "keypoints": moved}
    assert evaluate_detections(content, [result], sigmas=[0.1] * 4)["oks_ap"] == pytest.approx(0.3)
    assert evaluate_detections(content, [result], sigmas=[0.2] * 4)["oks_ap"] == pytest.approx(0.8)  # exp(-0.125)


def test_only_the_twenty_highest_scores_of_an_image_count(person, detection, coco):
    truth = person(7, 1, 10, 10, 50, 100)
    wrong = [detection(truth, 0.9, (250, 0)) for _ in range(20)]
    assert evaluate_detections(coco([truth]), [detection(truth, 0.5), *wrong], sigmas=COCO_SIGMAS)["oks_ar"] == 0.0
    assert evaluate_detections(coco([truth]), [detection(truth, 0.5), *wrong[1:]], sigmas=COCO_SIGMAS)["oks_ar"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_id": 99},
            r"detections\[0\]: expected a known image_id, one of the 2 in the annotations, got 99\. Evaluate",
        ),
        ({"category_id": 4}, r"detections\[0\]: expected a known category_id, .* got 4\."),
        ({"score": float("nan")}, r"detections\[0\], of image 1: expected a finite number as score, got nan"),
        ({"score": "0.5"}, r"expected a finite number as score, got '0.5'"),
        ({"bbox": [0, 0, 1]}, r"detections\[0\], of image 1: expected 4 finite box numbers.* got \[0, 0, 1\]"),
        ({"keypoints": [1.0, 2.0, 1.0]}, r"detections\[0\], of image 1: expected 51 finite keypoint numbers"),
        ({"keypoints": [float("nan")] * 51}, r"expected 51 finite keypoint numbers.* got 51 values, \[nan, "),
        ({"keypoints": ["1"] * 51}, r"expected 51 finite keypoint numbers"),
        ({"keypoints": [1e300] * 51}, r"expected 51 finite keypoint numbers"),
        ({"keypoints": "1" * 51}, r"expected 51 finite keypoint numbers"),
        ({"image_id": "1"}, r"known image_id, .* got '1'\. There it is a number: write it so"),
        ({"image_id": [1]}, r"detections\[0\]: expected a known image_id, .* got \[1\]"),
        ({"category_id": {}}, r"known category_id, .* got \{\}"),
        ({"category_id": None}, r"known category_id, .* got None"),
    ],
)
def test_impossible_detections_are_refused_by_name(two_people, detection, change, message):
    with pytest.raises(PosefoundryError, match=message):
        evaluate_detections(two_people, [detection(two_people["annotations"][0]) | change], sigmas=COCO_SIGMAS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": [float("inf")] * 51}, "annotation 7: expected 51 finite"),
        ({"keypoints": [1, 2, 2]}, "annotation 7: expected 51 finite"),
        ({"area": None}, "annotation 7: expected a finite 'area'"),
        ({"area": float("nan")}, "annotation 7: expected a finite 'area'"),
        ({"image_id": 12}, "annotation 7: .* image_id 12"),
        ({"image_id": [1]}, r"annotation 7: .* image_id \[1\]"),
        ({"category_id": float("nan")}, "annotation 7: .* category_id nan"),
        ({"category_id": {}}, r"annotation 7: .* category_id \{\}"),
        ({"id": {}}, r"annotations\[0\]: expected an 'id', a whole number or a name, got \{\}"),
        ({"id": 7.5}, r"annotations\[0\]: expected an 'id', .* got 7.5"),
        ({"id": True}, r"annotations\[0\]: expected an 'id', .* got True"),
        ({"id": "7"}, "annotations: expected ids that are all numbers or all names, got both"),
        ({"bbox": None}, "annotation 7: expected a finite 'bbox'.* got None"),
        ({"bbox": ["1", 2, 3, 4]}, "annotation 7: expected a finite 'bbox'"),
        ({"iscrowd": "no"}, "annotation 7: expected iscrowd as a number from 0, got 'no'"),
        ({"num_keypoints": -1}, "annotation 7: expected num_keypoints as a number from 0, got -1"),
    ],
)
def test_impossible_annotations_are_refused_by_name(two_people, change, message):
    two_people["annotations"][0] |= change
    with pytest.raises(PosefoundryError, match=message):
        OksEvaluator(two_people, sigmas=COCO_SIGMAS)


@pytest.mark.parametrize("kind", ["images", "annotations", "categories"])
def test_an_id_that_comes_twice_is_refused(two_people, kind):
    two_people[kind].append(dict(two_people[kind][0]))
    with pytest.raises(PosefoundryError, match=f"{kind}: expected each id once, got . more than once"):
        OksEvaluator(two_people, sigmas=COCO_SIGMAS)


def test_an_area_of_zero_is_refused_or_computed_by_a_named_rule(two_people, detection):
    # All keypoints 5 px away, as above: with an area of 53 % of 50 x 100 px, OKS is .66, right at .50 to .65.
    two_people["annotations"] = two_people["annotations"][:1]
    two_people["annotations"][0]["area"] = 0
    found = [detection(two_people["annotations"][0], shift_xy=(3, 4))]
    with pytest.raises(PosefoundryError, match=r"annotation 7: .*above 0.*got 0\. .*area=annotation_else_box"):
        OksEvaluator(two_people, sigmas=COCO_SIGMAS)
    for rule in ("annotation_else_box", "box"):
        evaluator = OksEvaluator(two_people, sigmas=COCO_SIGMAS, area_rule=rule)
        assert evaluator.evaluate(found)["oks_ap"] == pytest.approx(0.4)
        assert evaluator.truth.areas_from_box == 1


@pytest.mark.parametrize("rule", ["annotation_else_box", "box"])
def test_a_person_without_any_area_is_refused_by_all_rules_and_a_crowd_is_not(two_people, rule):
    two_people["annotations"][0] |= {"area": 0, "bbox": [10, 10, 0, 100], "iscrowd": 1}
    OksEvaluator(two_people, sigmas=COCO_SIGMAS, area_rule=rule)
    two_people["annotations"][0]["iscrowd"] = 0
    with pytest.raises(PosefoundryError, match=r"annotation 7: expected a 'bbox' of a width .* got \[10, 10, 0, 100\]"):
        OksEvaluator(two_people, sigmas=COCO_SIGMAS, area_rule=rule)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a COCO annotation file, an object with images.*, got a list"),
        ({"images": [], "annotations": []}, "expected a list 'categories'.*, got the keys 'images', 'annotations'"),
        ({"images": {}, "annotations": [], "categories": []}, "expected a list 'images'.* got an object there"),
        ({"images": [3], "annotations": [], "categories": []}, r"images\[0\]: expected an object, got a number"),
        ({"images": [{}], "annotations": [], "categories": []}, r"images\[0\]: expected an 'id'.*, got no such key"),
        ({"images": [], "annotations": [], "categories": [{"id": 1, "keypoints": [1]}]}, "a list of names, got"),
    ],
)
def test_what_is_no_annotation_file_is_refused(content, message):
    with pytest.raises(PosefoundryError, match=f"annotations: {message}|annotations: .*{message}"):
        OksEvaluator(content, sigmas=COCO_SIGMAS)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"annotations": []}, "detections: expected a COCO results file, a list of objects .* got an object"),
        ([3], r"detections\[0\]: expected an object .* got a number"),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1]}], r"detections\[0\]: .* got no 'category_id' among 'image_id', 'bbox'"),
    ],
)
def test_what_is_no_results_file_is_refused(two_people, results, message):
    with pytest.raises(PosefoundryError, match=message):
        evaluate_detections(two_people, results, sigmas=COCO_SIGMAS)


def test_ids_may_be_names_and_whole_numbers_with_a_point(two_people, detection):
    detections = [detection(a) for a in two_people["annotations"]]
    for entry in detections:
        entry["image_id"] = float(entry["image_id"])  # as tables of numbers write them
    assert evaluate_detections(two_people, detections, sigmas=COCO_SIGMAS)["oks_ap"] == pytest.approx(1.0)
    for entry in [*two_people["images"], *two_people["annotations"], *detections]:
        key = "id" if "file_name" in entry else "image_id"
        entry[key] = f"image {int(entry[key])}"
    assert evaluate_detections(two_people, detections, sigmas=COCO_SIGMAS)["oks_ap"] == pytest.approx(1.0)


def test_detections_without_boxes_have_poses_but_no_box_figures(two_people, detection):
    detections = [detection(a) for a in two_people["annotations"]]
    for entry in detections:
        del entry["bbox"]
    metrics = evaluate_detections(two_people, detections, sigmas=COCO_SIGMAS)
    assert metrics["oks_ap"] == pytest.approx(1.0)
    assert {metrics[key] for key in BOX_METRICS} == {None}
    with pytest.raises(PosefoundryError, match="1 of 2 with one"):
        evaluate_detections(two_people, [detections[0] | {"bbox": [0, 0, 9, 9]}, detections[1]], sigmas=COCO_SIGMAS)


def test_many_evaluations_leave_everything_as_it_was_and_print_nothing(crowd_scene, capfd):
    content, detections = crowd_scene
    before = copy.deepcopy(crowd_scene)
    evaluator = OksEvaluator(content, sigmas=COCO_SIGMAS)
    first = evaluator.evaluate(detections)
    evaluator.evaluate(detections[:3])
    evaluator.evaluate([])
    assert evaluator.evaluate(detections) == first
    assert (content, detections) == before
    assert capfd.readouterr() == ("", "")


def test_results_of_the_predictor_become_coco_results():
    result = SimpleNamespace(
        boxes_xyxy=np.array([[10, 20, 40, 80.25]], np.float32),
        scores=np.array([0.123456789], np.float32),
        class_ids=np.array([1]),
        keypoints_xyv=np.array([[[1, 2, 0.5], [3.00049, 4, 1]]], np.float32),
    )
    assert to_coco_results(result, 42, (1, 18)) == [
        {
            "image_id": 42,
            "category_id": 18,
            "bbox": [10.0, 20.0, 30.0, 60.25],
            "keypoints": [1.0, 2.0, 0.5, 3.0, 4.0, 1.0],
            "score": 0.123457,
        }
    ]


def test_nobody_found_becomes_no_results():
    result = SimpleNamespace(
        boxes_xyxy=np.zeros((0, 4)), scores=np.zeros(0), class_ids=np.zeros(0), keypoints_xyv=np.zeros((0, 17, 3))
    )
    assert to_coco_results(result, 42, (1,)) == []


def test_real_annotations_score_one_against_themselves(detection):
    path = Path("../shared/coco-real/annotations/person_keypoints_val2017.json")
    if not path.exists():
        pytest.skip(f"{path} is not here")
    labelled = [a for a in json.loads(path.read_text())["annotations"] if not a["iscrowd"] and a["num_keypoints"]]
    metrics = evaluate_detections(path, [detection(a) for a in labelled], sigmas=COCO_SIGMAS)
    assert [metrics[key] for key in OKS_METRICS] == pytest.approx([1.0] * 10)
