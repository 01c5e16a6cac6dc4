"""Sigmas from simulated double annotations whose truth is known, and from spoilt ones."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from posefoundry.datasets.pairing import box_iou_xywh, mutual_nearest
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.matching import Match
from posefoundry.evaluation.sigmas import describe, estimate_sigmas, read_double_annotation
from posefoundry.evaluation.warnings import flat_sigma_warning

NAMES = ["nose", "left_hand", "right_hand", "left_foot", "right_foot", "left_hip", "right_hip", "tail"]
SIGMAS = np.array([0.02, 0.05, 0.05, 0.09, 0.09, 0.12, 0.12, 0.03])
CENTRES = np.array([
    [0.5, 0.1], [0.1, 0.5], [0.9, 0.5], [0.3, 0.9], [0.7, 0.9], [0.35, 0.55], [0.65, 0.55], [0.5, 0.7],
])  # fmt: skip


def two_annotators(n_images=150, persons_per_image=3, seed=0):
    """Two COCO contents: the same persons, each keypoint off the truth by Gaussian noise of known size.

    Both annotators' d has E[d^2] = sigma^2 area, so each of x and y has the variance sigma^2 area / 2.
    """
    rng = np.random.default_rng(seed)
    annotators = []
    persons = []
    for image_id in range(1, n_images + 1):
        for place in range(persons_per_image):
            side = rng.uniform(60, 300)
            persons.append((image_id, 400 * place + rng.uniform(0, 40), rng.uniform(0, 90), side, 0.55 * side**2))
    for number in range(2):
        annotations = []
        for index, (image_id, x, y, side, area) in enumerate(persons):
            noise = rng.normal(0, 1, (len(NAMES), 2)) * (SIGMAS * np.sqrt(area / 2))[:, None]
            points = CENTRES * side + [x, y] + noise
            annotations.append({
                "id": index + 1, "image_id": image_id + 1000 * number, "category_id": 1, "area": area, "iscrowd": 0,
                "bbox": [x + rng.normal(0, 2), y + rng.normal(0, 2), side, side],
                "keypoints": [value for px, py in points.tolist() for value in (px, py, 2)],
            })  # fmt: skip
        images = [
            {"id": i + 1000 * number, "file_name": f"{i:04}.jpg", "width": 1300, "height": 400}
            for i in range(1, n_images + 1)
        ]
        category = {"id": 1, "name": "monkey", "keypoints": NAMES, "skeleton": []}
        annotators.append({"images": images, "annotations": annotations, "categories": [category]})
    return annotators


def write(folder: Path, contents):
    paths = []
    for name, content in zip(("first.json", "second.json"), contents, strict=True):
        (folder / name).write_text(json.dumps(content))
        paths.append(folder / name)
    return paths


def estimates_of(tmp_path, contents):
    return estimate_sigmas(read_double_annotation(*write(tmp_path, contents)), resamples=400)


def test_known_sigmas_are_recovered_with_intervals_that_hold_them(tmp_path):
    held = 0
    for seed in range(4):
        estimates = estimates_of(tmp_path, two_annotators(seed=seed))
        assert [estimate.persons + estimate.outliers for estimate in estimates] == [450] * len(NAMES)
        np.testing.assert_allclose([estimate.sigma for estimate in estimates], SIGMAS, rtol=0.1)
        held += sum(e.low <= s <= e.high for e, s in zip(estimates, SIGMAS, strict=True))
        assert sum(estimate.outliers for estimate in estimates) <= 5
        assert max(estimate.offset for estimate in estimates) < 0.2
    assert held >= 26, "of 32 intervals at 95 %"


def test_the_distance_between_annotators_would_be_a_factor_of_1_4_too_much(tmp_path):
    first, second = two_annotators()
    persons = read_double_annotation(*write(tmp_path, (first, second)))
    square = ((persons.first_xyv - persons.second_xyv)[..., :2] ** 2).sum(axis=2) / persons.areas[:, None]
    naive = np.sqrt(square.mean(axis=0))
    sigma = np.array([estimate.sigma for estimate in estimate_sigmas(persons, resamples=10)])
    np.testing.assert_allclose(naive / sigma, np.sqrt(2), rtol=0.03)


def test_gross_errors_are_counted_and_hardly_move_sigma(tmp_path):
    first, second = two_annotators()
    for annotation in second["annotations"][::20]:
        annotation["keypoints"][0] += annotation["bbox"][2]  # the nose put on somebody else
    nose, *others = estimates_of(tmp_path, (first, second))
    assert nose.outliers == pytest.approx(23, abs=2)
    assert nose.sigma == pytest.approx(0.02, rel=0.1)
    assert nose.sigma_with_outliers > 0.1
    assert all(estimate.outliers <= 3 for estimate in others)


def test_exchanged_sides_are_counted_apart_from_outliers(tmp_path):
    first, second = two_annotators()
    flip = [0, 2, 1, 4, 3, 6, 5, 7]
    for annotation in second["annotations"][:40]:
        points = np.array(annotation["keypoints"]).reshape(-1, 3)[flip]
        annotation["keypoints"] = points.ravel().tolist()
    estimates = estimates_of(tmp_path, (first, second))
    assert [estimate.sides_exchanged for estimate in estimates] == [0, 40, 40, 40, 40, 40, 40, 0]
    np.testing.assert_allclose([estimate.sigma for estimate in estimates], SIGMAS, rtol=0.1)


def test_a_habit_of_one_annotator_shows(tmp_path):
    first, second = two_annotators()
    for annotation in second["annotations"]:
        annotation["keypoints"][1] += 0.02 * annotation["area"] ** 0.5  # the nose a little lower, always
    nose, *others = estimates_of(tmp_path, (first, second))
    assert nose.offset == pytest.approx(0.02 / nose.sigma, rel=0.15)
    assert nose.sigma > 0.022
    assert max(estimate.offset for estimate in others) < 0.2


def test_who_has_no_partner_is_told(tmp_path):
    first, second = two_annotators(40)
    del second["images"][0]
    second["annotations"] = [a for a in second["annotations"] if a["image_id"] != 1001][1:]
    first["annotations"][5]["iscrowd"] = 1
    first["annotations"][6]["area"] = 0
    second["annotations"][-1]["keypoints"][2] = 0
    second["annotations"][-2]["keypoints"] = [1, 2, 3]
    del second["annotations"][-3]["area"]
    persons = read_double_annotation(*write(tmp_path, (first, second)))
    assert persons.left_out == {
        "faulty records in the second file": 1,
        "crowds in the first file": 1,
        "images only in the first file": 1,
        "persons only in the first file": 2,
        "persons only in the second file": 1,
        "persons without area": 1,
    }
    nose = estimate_sigmas(persons, resamples=10)[0]
    assert (nose.labelled_once, nose.persons + nose.outliers) == (1, len(persons.areas) - 1)


def test_too_few_persons_give_no_sigma_and_no_file(tmp_path):
    first, second = two_annotators(5)
    for annotation in second["annotations"][8:]:
        annotation["keypoints"][2] = 0
    persons = read_double_annotation(*(paths := write(tmp_path, (first, second))))
    estimates = estimate_sigmas(persons, resamples=10)
    assert (estimates[0].sigma, estimates[0].persons) == (None, 8)
    assert estimates[1].sigma is not None
    with pytest.raises(PosefoundryError, match=r"fewer for nose \(8\)"):
        describe(estimates, persons, tuple(paths))


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    first, second = two_annotators(3)
    for image in second["images"]:
        image["file_name"] = "other_" + image["file_name"]
    with pytest.raises(PosefoundryError, match="found none in 0 images"):
        read_double_annotation(*write(tmp_path, (first, second)))
    second["categories"][0]["keypoints"] = NAMES[::-1]
    with pytest.raises(PosefoundryError, match="expected the keypoints of"):
        read_double_annotation(*write(tmp_path, (first, second)))


def test_pairing_takes_each_side_once():
    boxes = [[0, 0, 10, 10], [1, 0, 10, 10], [50, 50, 5, 5]]
    assert box_iou_xywh(boxes[:1], boxes)[0] == pytest.approx([1, 9 / 11, 0])
    assert mutual_nearest(boxes, [[1, 0, 10, 10]], min_iou=0.5) == [(1, 0)]
    assert mutual_nearest(boxes[:1], [[9, 9, 10, 10]], min_iou=0.5) == []
    assert mutual_nearest([], boxes, min_iou=0.5) == []
    assert mutual_nearest([[0, 0, 0, 0]], [[0, 0, 0, 0]], min_iou=0.0) == []


def test_the_file_is_what_a_dataset_yaml_accepts(tmp_path):
    persons = read_double_annotation(*(paths := write(tmp_path, two_annotators(20))))
    content = describe(estimate_sigmas(persons, resamples=10), persons, tuple(paths))
    (tmp_path / "images").mkdir()
    head = {"train": "images", "val": "images", "names": ["monkey"], "kpt_shape": [8, 3], "flip_idx": list(range(8))}
    head |= {key: content[key] for key in ("sigmas", "kpt_names")}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(head))
    assert read_dataset_yaml(tmp_path / "dataset.yaml").skeleton.sigmas == tuple(content["sigmas"])


def matches_off_by(fraction_of_scale, n=10, k=4, area=10_000.0):
    distance = fraction_of_scale * area**0.5
    truth = {"keypoints": [50.0, 50.0, 2] * k}
    found = {"keypoints": [50.0 + distance, 50.0, 1] * k, "score": 0.9}
    return [Match(truth, found, 0.9, area)] * n


@pytest.mark.parametrize(
    ("sigmas", "oks_ap", "matches", "warned"),
    [
        ([0.25] * 4, 0.9, matches_off_by(0.1), True),
        ([0.25] * 4, 0.9, matches_off_by(0.01), False),
        ([0.25] * 4, 0.3, matches_off_by(0.1), False),
        ([0.25] * 4, None, [], False),
        ([0.25] * 4, 0.9, [], False),
        ([0.25] * 4, 0.9, matches_off_by(0.1, area=100), False),
        ([0.05] * 4, 0.9, matches_off_by(0.1), False),
        ([0.25, 0.25, 0.25, 0.24], 0.9, matches_off_by(0.1), False),
    ],
    ids=["flatters", "exact", "low AP", "nobody", "none found", "one pixel", "measured alike", "measured"],
)
def test_the_flat_default_is_warned_of_where_it_flatters(sigmas, oks_ap, matches, warned):
    sentence = flat_sigma_warning(sigmas, oks_ap, matches)
    assert (sentence is not None) == warned
    if warned:
        assert "10.0 px off, 10.0% of the person's scale" in sentence
        assert "posefoundry sigmas" in sentence


@pytest.fixture
def run(monkeypatch, command_line, tmp_path):
    """Runs the command in a folder with two annotators' files; returns exit status, stdout and stderr."""
    write(tmp_path, two_annotators(30))
    monkeypatch.chdir(tmp_path)
    return partial(command_line, "sigmas")


def test_the_table_and_both_files(run, tmp_path):
    status, out, err = run("annotations=first.json", "second=second.json", "out=sigmas.yaml")
    assert (status, err) == (0, "")
    assert "90 persons annotated twice, in 30 images" in out
    assert "left_hand" in out
    content = yaml.safe_load((tmp_path / "sigmas.yaml").read_text())
    assert content["sigmas"][0] == pytest.approx(0.02, rel=0.15)
    assert content["keypoints"][0]["low"] < content["sigmas"][0] < content["keypoints"][0]["high"]
    run("annotations=first.json", "second=second.json", "out=sigmas.json")
    assert json.loads((tmp_path / "sigmas.json").read_text()) == content
    assert "sigmas: [0.0" in run("annotations=first.json", "second=second.json")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["annotations=first.json"], "expected second="),
        (["annotations=first.json", "second=nowhere.json"], "nowhere.json: expected a JSON file"),
        (["annotations=first.json", "second=second.json", "out=sigmas.txt"], "expected a .yaml or .json file"),
        (["annotations=first.json", "second=second.json", "outt=x.yaml"], "did you mean 'out'?"),
        (["annotations=first.json", "second=second.json", "seed=-1"], "expected a whole number"),
    ],
)
def test_refusals(run, words, message):
    status, _, err = run(*words)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
