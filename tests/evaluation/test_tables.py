"""What an evaluation tells about images, scores, classes and tags."""

import pytest

from posefoundry.datasets.tags import read_tags
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.calibration import calibration
from posefoundry.evaluation.confusion import class_confusion
from posefoundry.evaluation.image_table import image_rows
from posefoundry.evaluation.oks import OksEvaluator
from posefoundry.evaluation.pck import place
from posefoundry.evaluation.slices import tag_columns
from posefoundry.evaluation.summary import summary
from posefoundry.skeleton import COCO_PERSON_CATEGORY, COCO_SIGMAS


def evaluate(content, detections, **more):
    evaluator = OksEvaluator(content, sigmas=COCO_SIGMAS, **more)
    return evaluator, evaluator.evaluate_in_detail(detections)


def test_each_image_says_who_was_found(person, detection, coco):
    seen, missed, crowd = person(1, 2, 10, 10, 50, 100), person(2, 2, 300, 10, 50, 100), person(3, 1, 10, 10, 200, 100)
    crowd |= {"iscrowd": 1, "num_keypoints": 0, "keypoints": [0] * 51}
    found = [
        detection(seen, 0.9), detection(seen, 0.5, (200, 200)), detection(seen, 0.2, (200, 200)),
        detection(person(0, 1, 60, 30, 50, 60), 0.7),  # in the crowd
    ]  # fmt: skip
    tags = {"site": ["yard", "gate", None]}
    evaluator, evaluation = evaluate(coco([seen, missed, crowd], 3), found, tags=tags)
    placement = place(evaluation, evaluator.keypoint_names, "box")
    first, second, third = image_rows(evaluator.images, evaluation, placement, evaluator.tags)
    assert second == {
        "image_id": 2, "file_name": "002.png", "persons": 2, "found": 1, "missed": 1, "false_positives": 1,
        "score": pytest.approx(1 / 3), "mean_oks": pytest.approx(0.5), "min_oks": pytest.approx(0),
        "mean_score": pytest.approx(0.7),
        "tags": {"site": "gate"},
    }  # fmt: skip
    assert first.items() >= {"persons": 0, "found": 0, "score": None, "mean_oks": None, "min_oks": None}.items()
    assert first["mean_score"] == pytest.approx(0.7)
    assert third.items() >= {"persons": 0, "false_positives": 0, "mean_score": None, "tags": {}}.items()


def test_calibration_by_hand(person, detection, coco):
    # From .80 on four of six detections are right, on scores of .8; below .25 nothing weighs in the error.
    people = [person(i, i, 100, 100, 50, 100) for i in range(1, 5)]
    found = [detection(p, 0.8) for p in people] + [detection(p, 0.8, (300, 200)) for p in people[:2]]
    found += [detection(p, 0.1, (300, 0)) for p in people]
    _, evaluation = evaluate(coco(people, 4), found)
    result = calibration(evaluation.slices["all"])
    bins = {b["score_low"]: b for b in result["bins"]}
    assert len(bins) == 20
    assert bins[0.8] == {
        "score_low": 0.8, "score_high": 0.85, "detections": 6, "mean_score": pytest.approx(0.8),
        "fraction_right": pytest.approx(4 / 6),
    }  # fmt: skip
    assert (bins[0.1]["detections"], bins[0.1]["fraction_right"]) == (4, 0.0)
    assert bins[0.5] == {
        "score_low": 0.5, "score_high": 0.55, "detections": 0, "mean_score": None, "fraction_right": None,
    }  # fmt: skip
    assert result["expected_calibration_error"] == pytest.approx(0.8 - 4 / 6)


def test_a_score_of_one_lies_in_the_last_bin_and_of_nothing_there_is_no_error(person, detection, coco):
    truth = person(1, 1, 100, 100, 50, 100)
    _, evaluation = evaluate(coco([truth]), [detection(truth, 1.0)])
    assert calibration(evaluation.slices["all"])["bins"][-1]["detections"] == 1
    _, evaluation = evaluate(coco([truth]), [])
    assert calibration(evaluation.slices["all"])["expected_calibration_error"] is None


def test_classes_that_are_confused_missed_and_invented(person, detection, coco):
    player, referee, hidden = (person(i, i, 100, 100, 50, 100) for i in (1, 2, 3))
    referee["category_id"] = 2
    bystander = person(4, 1, 400, 100, 50, 100)
    unlabelled = bystander | {"num_keypoints": 0, "keypoints": [0] * 51}
    content = coco([player, referee, hidden, unlabelled], 3)
    content["categories"] = [COCO_PERSON_CATEGORY | {"id": c, "name": n} for c, n in ((1, "player"), (2, "referee"))]
    found = [
        detection(player), detection(referee) | {"category_id": 1}, detection(player, 0.8, (200, 200)),
        detection(bystander), detection(hidden, 0.1),
    ]  # fmt: skip
    evaluator, evaluation = evaluate(content, found)
    result = class_confusion(evaluation, evaluator.class_names)
    assert result == {"classes": ["player", "referee"], "confusion": [[1, 0, 1], [1, 0, 0], [1, 0, 0]]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name,a,a\n001.png,x,y\n", "tags with distinct names"),
        ("file_name,a\n001.png,x=y\n", "without '=' and '&'"),
        ("file_name,a\n001.png,x\n001.png,y\n", "line 3: '001.png' stands there twice"),
        (
            "file_name,a\n009.png,x\n010.png,x\n",
            "2 of 2 rows are of images .*, such as '009.png'; expected names such as '001.png'",
        ),
        ("file_name,a\nday__1.png,x\n", "'day__1.png' stands for 2 images"),
        (f"file_name,a\n001.png,{'x' * 140_000}\n", "tags: expected CSV in UTF-8, got .*field larger than"),
        (None, "tags: expected a CSV file, found none"),
    ],
)
def test_tags_that_cannot_be_meant_are_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "tags.csv").write_text(content)
    with pytest.raises(PosefoundryError, match=message):
        read_tags(tmp_path / "tags.csv", where="tags", file_names=["001.png", "day/1.png", "day__1.png"])


def test_tags_of_other_images_are_left_out_aloud(tmp_path, capsys):
    path = tmp_path / "tags.csv"
    path.write_text("file_name,site\n001.png,yard\n900.png,hall\n901.png,hall\n")
    assert read_tags(path, where="tags", file_names=["001.png", "002.png"]) == {"001.png": {"site": "yard"}}
    assert "2 of 3 rows are of images that the annotations do not have, such as '900.png': left out" in (
        capsys.readouterr().err
    )


def columns(path, names):
    return tag_columns(read_tags(path, where="tags", file_names=names), names)


def test_tags_are_read_in_the_order_of_the_images(tmp_path):
    text = "file_name,site,corrected\n002.png,yard,no\n001.png, gate ,\nday/3.png,,yes\n"
    (tmp_path / "tags.csv").write_text(text, encoding="utf-8-sig")
    assert columns(tmp_path / "tags.csv", ["001.png", "002.png", "./day/3.png", "004.png"]) == {
        "site": ["gate", "yard", None, None], "corrected": [None, "no", "yes", None],
    }  # fmt: skip
    (tmp_path / "tags.csv").write_text("file_name\n")
    assert columns(tmp_path / "tags.csv", ["001.png"]) == {}


def test_slices_whose_names_would_be_one_are_refused(person, coco):
    with pytest.raises(PosefoundryError, match="distinct names, got 'site=a\\+b' twice"):
        OksEvaluator(coco([person(1, 1, 0, 0, 50, 100)]), sigmas=COCO_SIGMAS, tags={"site": ["a&b", "a+b"]})


def test_an_unknown_crossed_slice_is_refused_before_any_model_runs(person, coco):
    with pytest.raises(PosefoundryError, match="'keypoint=tail&size'"):
        OksEvaluator(coco([person(1, 1, 0, 0, 50, 100)]), sigmas=COCO_SIGMAS, crossed=["keypoint=tail&size"])


def test_a_summary_names_what_is_weakest_and_what_costs_most():
    def row(name, ap, persons=20):
        return {"slice": name, "group": name.split("=")[0], "oks_ap": ap, "persons": persons}

    slices = [
        row("all", 0.1), row("keypoint=nose", 0.9), row("keypoint=left_wrist", 0.31), row("keypoint=tail", 0.0, 9),
        row("size=small", 0.2), row("size=large", None), row("persons=1", 0.5),
    ]  # fmt: skip
    metrics = {"pck_0.05": 0.5, "pck_0.1": 0.75, "pckh_0.5": None, "mean_error_px": 6.25, "normalised_error": 0.034}
    lost = {"miss": 0.1, "swap": None, "jitter": 0.25, "inversion": 0.0, "background": 0.0004, "duplicate": 0.002}
    assert summary(metrics, slices, {"ap_lost": lost}, "box") == [
        "PCK@0.05 0.500, PCK@0.1 0.750 of the box's longer side",
        "keypoints of persons found are 6.2 px off on average, 3.4% of that size",
        "AP lost most to: jitter 0.250, miss 0.100, duplicate 0.002",
        "weakest: at the left wrist AP 0.310 (20 persons); of small persons AP 0.200 (20 persons)",
    ]
    nothing = dict.fromkeys(metrics)
    assert summary(nothing, slices[:1], {"ap_lost": dict.fromkeys(lost)}, "box") == []
