"""Who was found, how well, and the tables and plots made from it."""

import csv
import io
import math

import cv2
import numpy as np
import pytest

from posefoundry.evaluation.curves import person_csv, precision_recall_csv
from posefoundry.evaluation.matching import image_scores, keypoint_errors, match_persons, partners
from posefoundry.evaluation.oks import OksEvaluator
from posefoundry.evaluation.plots import draw_plots
from posefoundry.skeleton import COCO_KEYPOINT_NAMES, COCO_SIGMAS


def evaluate(content, detections):
    evaluator = OksEvaluator(content, sigmas=COCO_SIGMAS)
    evaluation = evaluator.evaluate_in_detail(detections)
    return evaluation, match_persons(evaluator, evaluation, detections)


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_detection_speaks_for_one_person_only(person, detection, coco):
    left, right = person(1, 1, 100, 100, 50, 100), person(2, 1, 104, 100, 50, 100)
    _, matches = evaluate(coco([left, right]), [detection(right)])
    assert [match.oks for match in matches] == pytest.approx([0.0, 1.0])
    assert matches[0].detection is None


def test_the_closest_pair_comes_first_whatever_its_score(person, detection, coco):
    truth = person(1, 1, 100, 100, 50, 100)
    near, far = detection(truth, 0.3), detection(truth, 0.9, (4, 0))
    _, matches = evaluate(coco([truth]), [far, near])
    assert matches[0].detection is near


def test_a_detection_that_no_user_would_see_finds_nobody(person, detection, coco):
    truth = person(1, 1, 100, 100, 50, 100)
    assert evaluate(coco([truth]), [detection(truth, 0.24)])[1][0].oks == 0.0
    assert evaluate(coco([truth]), [detection(truth, 0.25)])[1][0].oks == pytest.approx(1.0)


def test_crowds_and_unlabelled_persons_are_nobody_to_match(person, detection, coco):
    crowd, unlabelled = person(1, 1, 10, 10, 50, 100), person(2, 1, 200, 10, 50, 100)
    crowd["iscrowd"] = 1
    unlabelled |= {"num_keypoints": 0, "keypoints": [0] * 51}
    _, matches = evaluate(coco([crowd, unlabelled]), [detection(crowd)])
    assert matches == []


def test_an_image_scores_its_persons_and_what_was_seen_where_nobody_is(person, detection, coco):
    seen, missed, other = person(1, 1, 10, 10, 50, 100), person(2, 1, 300, 10, 50, 100), person(3, 2, 0, 0, 50, 100)
    nobody = [detection(person(0, image, 300, 200, 50, 100), score) for image, score in ((2, 0.9), (3, 0.9), (2, 0.2))]
    evaluator = OksEvaluator(coco([seen, missed, other], 4), sigmas=COCO_SIGMAS)
    evaluation = evaluator.evaluate_in_detail([detection(seen), detection(other), *nobody])
    scores = image_scores(evaluation, *partners(evaluation))
    assert scores.persons.tolist() == [2, 1, 0, 0]
    assert scores.false_positives.tolist() == [0, 1, 1, 0]
    assert scores.mean_oks == pytest.approx([0.5, 1.0, np.nan, np.nan], nan_ok=True)
    assert scores.score == pytest.approx([0.5, 0.5, 0.0, np.nan], nan_ok=True)


def test_keypoint_errors_by_hand(person, detection, coco):
    # Two persons of area 2500 px^2; the nose (sigma .026) is 2 and 6 px off, the left eye unlabelled once.
    people = [person(1, 1, 10, 10, 50, 100), person(2, 2, 10, 10, 50, 100)]
    found = [detection(p) for p in people]
    found[0]["keypoints"][0] += 2
    found[1]["keypoints"][1] += 6
    people[1]["keypoints"][3:6] = [0, 0, 0]
    _, matches = evaluate(coco(people), found)
    errors = keypoint_errors(matches, np.array(COCO_SIGMAS))
    similarity = [math.exp(-(d**2) / (2 * 2500 * (2 * 0.026) ** 2)) for d in (2, 6)]
    assert errors.error_px[0] == pytest.approx(4.0)
    assert errors.similarity[0] == pytest.approx(np.mean(similarity))
    assert errors.count.tolist() == [2, 1] + [2] * 15
    assert errors.persons_found == 2


@pytest.mark.parametrize("rule", ["annotation_else_box", "box"])
def test_a_person_without_area_has_the_one_that_scales_oks(rule, person, detection, coco):
    truth = person(1, 1, 10, 10, 50, 100)
    found = detection(truth, shift_xy=(3, 4))
    del truth["area"]
    evaluator = OksEvaluator(coco([truth]), sigmas=COCO_SIGMAS, area_rule=rule)
    matches = match_persons(evaluator, evaluator.evaluate_in_detail([found]), [found])
    assert rows(person_csv(matches))[0]["area_px2"] == "2650.0"  # 0.53 of the box
    similarity = keypoint_errors(matches, np.array(COCO_SIGMAS)).similarity
    assert similarity[0] == pytest.approx(math.exp(-25 / (2 * 2650 * (2 * 0.026) ** 2)))
    assert similarity.mean() == pytest.approx(matches[0].oks)


def test_keypoint_errors_of_nobody_are_nan(person, coco):
    _, matches = evaluate(coco([person(1, 1, 10, 10, 50, 100)]), [])
    errors = keypoint_errors(matches, np.array(COCO_SIGMAS))
    assert np.isnan(errors.error_px).all()
    assert errors.persons_found == 0


def test_curves_fall_with_recall_and_average_to_ap(crowd_scene):
    content, detections = crowd_scene
    evaluation, _ = evaluate(content, detections)
    table = rows(precision_recall_csv(evaluation))
    assert [float(row["recall"]) for row in table] == pytest.approx(np.linspace(0, 1, 101))
    for column, metric in (
        ("precision_oks50", "oks_ap50"),
        ("precision_oks75", "oks_ap75"),
        ("precision_oks50_95", "oks_ap"),
    ):
        precision = np.array([float(row[column]) for row in table])
        assert (np.diff(precision) <= 0).all()
        assert precision.mean() == pytest.approx(evaluation.metrics[metric], abs=1e-6)


def test_a_stricter_threshold_is_never_easier(crowd_scene):
    content, detections = crowd_scene
    table = rows(precision_recall_csv(evaluate(content, detections)[0]))
    assert all(float(row["precision_oks75"]) <= float(row["precision_oks50"]) for row in table)


def test_each_person_has_a_row_with_its_best_oks(person, detection, coco):
    seen, missed = person(11, 1, 10, 10, 50, 100), person(12, 1, 300, 10, 50, 100)
    _, matches = evaluate(coco([seen, missed]), [detection(seen, 0.7)])
    assert rows(person_csv(matches)) == [
        {"image_id": "1", "annotation_id": "11", "area_px2": "2500.0", "oks": "1.0", "score": "0.7"},
        {"image_id": "1", "annotation_id": "12", "area_px2": "2500.0", "oks": "0.0", "score": ""},
    ]


@pytest.mark.parametrize("scene", ["full", "nobody found", "nobody there"])
def test_plots_are_drawn_whatever_was_found(scene, crowd_scene, coco, tmp_path):
    content, detections = crowd_scene if scene != "nobody there" else (coco([]), [])
    evaluation, matches = evaluate(content, detections if scene == "full" else [])
    errors = keypoint_errors(matches, np.array(COCO_SIGMAS))
    draw_plots(tmp_path / "plots", evaluation, matches, errors, COCO_KEYPOINT_NAMES, "tiny")
    names = ["keypoints.png", "oks_distribution.png", "precision_recall.png"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == names
    for name in names:
        image = cv2.imread(str(tmp_path / "plots" / name))
        assert image.shape[0] > 300
        assert image.std() > 5, f"{name} is empty"
