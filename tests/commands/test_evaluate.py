"""`posefoundry evaluate`: pycocotools' figures on anybody's files, and a sentence for what may be wrong."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefoundry import cli
from posefoundry.evaluation.oks import BOX_METRICS, OKS_METRICS
from posefoundry.skeleton import COCO_KEYPOINT_NAMES, COCO_SIGMAS


@pytest.fixture
def evaluate(monkeypatch, capsys, tmp_path):
    """Runs `posefoundry evaluate` in a folder of its own; returns exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def act(*words):
        monkeypatch.setattr(sys, "argv", ["posefoundry", "evaluate", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err

    return act


def random_files(seed, *, names=COCO_KEYPOINT_NAMES, n_classes=1, boxes=True, n_images=30):
    """Persons of all sizes, crowds, unlabelled ones, false positives, ties of scores, more than 20 in an image."""
    rng = np.random.default_rng(seed)
    k, annotations, detections = len(names), [], []
    image_ids = [int(i) for i in rng.permutation(n_images) * 7 + 3]
    for image_id in image_ids:
        for _ in range(rng.integers(0, 4)):
            size = float(rng.choice([25, 60, 150, 300]))
            x, y = rng.uniform(0, 300, 2)
            xy = rng.uniform(0, size, (k, 2)) + np.array([x, y])
            v = rng.choice([0, 1, 2], k) * (rng.random() > 0.1)
            points = np.concatenate((xy.round(1), v[:, None]), axis=1) * (v > 0)[:, None]
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": int(rng.integers(1, n_classes + 1)),
                "bbox": [x, y, size, size], "area": size**2 * rng.uniform(0.3, 0.9), "iscrowd": int(rng.random() < 0.1),
                "keypoints": points.ravel().tolist(), "num_keypoints": int((v > 0).sum()),
            })  # fmt: skip
            for _ in range(rng.choice([0, 1, 2, 15])):
                guess = xy + rng.normal(0, size * rng.choice([0.01, 0.04]), (k, 2))
                detections.append((image_id, guess, annotations[-1]["category_id"]))
        detections += [(image_id, rng.uniform(0, 400, (k, 2)), 1) for _ in range(rng.integers(0, 3))]
    results = []
    for number in rng.permutation(len(detections)):
        image_id, xy, category_id = detections[number]
        (x, y), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
        results.append({
            "image_id": image_id, "category_id": category_id, "score": round(float(rng.random()), 2),
            "keypoints": np.concatenate((xy, np.ones((k, 1))), axis=1).ravel().tolist(),
        } | ({"bbox": [x, y, right - x, bottom - y]} if boxes else {}))  # fmt: skip
    categories = [{"id": c, "name": f"class {c}", "keypoints": list(names)} for c in range(1, n_classes + 1)]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in image_ids]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def by_pycocotools(sigmas, kinds=("keypoints", "bbox")):
    """The figures of gt.json and dt.json; -1, by which pycocotools says that nobody is there, becomes None."""
    figures = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO("gt.json")
        results = truth.loadRes("dt.json")
        for kind in kinds:
            evaluation = COCOeval(truth, results, kind)
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            keys = OKS_METRICS if kind == "keypoints" else BOX_METRICS
            figures |= {key: None if v < 0 else v for key, v in zip(keys, evaluation.stats, strict=False)}
    return figures


def write(tmp_path, content, results):
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "dt.json").write_text(json.dumps(results))


FILES = ("annotations=gt.json", "detections=dt.json")


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_are_those_of_pycocotools_on_the_same_files(evaluate, tmp_path, seed):
    write(tmp_path, *random_files(seed))
    status, out, err = evaluate(*FILES, "json=out/figures.json")
    assert (status, err) == (0, "")
    got = json.loads((tmp_path / "out" / "figures.json").read_text())
    expected = by_pycocotools(COCO_SIGMAS)
    assert {key: got[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert 0.02 < got["oks_ap"] < 0.98, "neither trivial nor hopeless"
    assert f"{got['oks_ap']:.4f}" in out and f"{got['box_ap_s']:.4f}" in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["figures.json"]


@pytest.mark.parametrize("given", ["file", "list", "category"])
def test_five_keypoints_in_two_classes_by_their_own_sigmas(evaluate, tmp_path, given):
    sigmas = [0.05, 0.1, 0.025, 0.08, 0.3]
    content, results = random_files(7, names=("a", "b", "c", "d", "e"), n_classes=2)
    (tmp_path / "own.yaml").write_text(f"sigmas: {sigmas}\nkpt_names: [a, b, c, d, e]\n")
    words = {"file": ["sigmas=own.yaml"], "list": [f"sigmas={sigmas}"], "category": []}[given]
    if given == "category":
        content["categories"] = [category | {"sigmas": sigmas} for category in content["categories"]]
    write(tmp_path, content, results)
    assert evaluate(*FILES, "json=out.json", *words)[0] == 0
    got, expected = json.loads((tmp_path / "out.json").read_text()), by_pycocotools(sigmas)
    assert {key: got[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert got["passport"]["sigmas"] == sigmas


def test_results_without_boxes_have_poses_alone(evaluate, tmp_path):
    write(tmp_path, *random_files(2, boxes=False))
    status, out, _ = evaluate(*FILES, "json=out.json")
    got, expected = json.loads((tmp_path / "out.json").read_text()), by_pycocotools(COCO_SIGMAS, ("keypoints",))
    assert status == 0
    assert {key: got[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert {got[key] for key in BOX_METRICS} == {None}
    assert [line.split() for line in out.splitlines() if line.startswith("box AP")] == [["box", "AP"] + ["n/a"] * 6]


def test_what_nobody_is_there_for_is_null_and_n_a(evaluate, tmp_path):
    content, results = random_files(3)
    content["annotations"] = [entry for entry in content["annotations"] if entry["area"] > 96**2]
    write(tmp_path, content, results)
    status, out, _ = evaluate(*FILES, "json=out.json")
    got = json.loads((tmp_path / "out.json").read_text())
    assert status == 0
    assert [got[key] for key in ("oks_ap_m", "oks_ar_m", "box_ap_s", "box_ap_m")] == [None] * 4
    assert got["oks_ap_l"] is not None
    oks = next(line for line in out.splitlines() if line.startswith("OKS AP"))
    assert "n/a" in oks and "-1" not in oks


def test_no_detections_are_worth_zero_and_a_warning(evaluate, tmp_path):
    write(tmp_path, random_files(3)[0], [])
    status, out, err = evaluate(*FILES, "json=out.json")
    got = json.loads((tmp_path / "out.json").read_text())
    assert (status, err, got["oks_ap"], got["oks_ar"], got["box_ap"]) == (0, "", 0.0, 0.0, 0.0)
    assert "Warning: There is not a single detection" in out and len(got["warnings"]) == 1


def test_counts_that_are_missing_are_computed(evaluate, tmp_path):
    content, results = random_files(5)
    content["annotations"] = [entry for entry in content["annotations"] if not entry["iscrowd"]]
    write(tmp_path, content, results)
    expected = by_pycocotools(COCO_SIGMAS)
    for entry in content["annotations"]:
        del entry["iscrowd"], entry["num_keypoints"]
    write(tmp_path, content, results)
    assert evaluate(*FILES, "json=out.json")[0] == 0
    got = json.loads((tmp_path / "out.json").read_text())
    assert {key: got[key] for key in expected} == pytest.approx(expected, abs=1e-9)


def test_slices_and_tags(evaluate, tmp_path):
    content, results = random_files(1)
    night = {image["id"] for image in content["images"][::2]}
    rows = "".join(f"{image['file_name']},{'night' if image['id'] in night else ''}\n" for image in content["images"])
    (tmp_path / "tags.csv").write_text("file_name,time\n" + rows)
    write(tmp_path, content, results)
    status, out, _ = evaluate(*FILES, "json=out.json", "tags=tags.csv", "slices=keypoint&size")
    got = json.loads((tmp_path / "out.json").read_text())
    assert status == 0
    rows = {row["slice"]: row for row in got["slices"]}
    assert rows["all"]["oks_ap"] == got["oks_ap"] and rows["size=large"]["oks_ap"] == got["oks_ap_l"]
    assert rows["all"]["persons"] == got["persons"]
    assert {"visibility=occluded", "truncation=whole", "persons=4+", "class=class 1", "keypoint=nose"} <= set(rows)
    assert "keypoint=left_wrist&size=small" in rows and "keypoint=left_wrist&size=small" in out
    # A slice of images is an evaluation of these images alone.
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in night]
    content["images"] = [image for image in content["images"] if image["id"] in night]
    write(tmp_path, content, [entry for entry in results if entry["image_id"] in night])
    expected = by_pycocotools(COCO_SIGMAS, ("keypoints",))
    assert [rows["time=night"][key] for key in ("oks_ap", "oks_ap75", "oks_ar")] == pytest.approx(
        [expected[key] for key in ("oks_ap", "oks_ap75", "oks_ar")], abs=1e-9
    )


def test_exactness_and_kinds_of_error_are_told(evaluate, tmp_path):
    # Two persons in boxes of 100 px, one of whom is missed. Of the other the first of two keypoints is 8 px off, good
    # still: exp(-8^2 / (2 * 5000 * (2 * .1)^2)) = .852 is no less than .85. OKS .926: found at 9 of 10 thresholds.
    content, _ = random_files(0, names=("tip", "tail"), n_images=2)
    content["annotations"] = [
        {"id": n, "image_id": image["id"], "category_id": 1, "bbox": [50, 50, 100, 100], "area": 5000.0, "iscrowd": 0,
         "keypoints": [60, 60, 2, 140, 140, 2], "num_keypoints": 2}
        for n, image in enumerate(content["images"], 1)
    ]  # fmt: skip
    found = {"image_id": content["images"][0]["id"], "category_id": 1, "score": 0.9, "bbox": [50, 50, 100, 100]}
    write(tmp_path, content, [found | {"keypoints": [68, 60, 1, 140, 140, 1]}])
    status, out, _ = evaluate(*FILES, "sigmas=[0.1, 0.1]", "slices=true", "json=out.json")
    got = json.loads((tmp_path / "out.json").read_text())
    assert status == 0
    assert [got[f"pck_{t}"] for t in ("0.05", "0.1", "0.2")] == [0.25, 0.5, 0.5]
    assert (got["mean_error_px"], got["normalised_error"]) == pytest.approx((4.0, 0.04))
    counts = {kind: n for kind, n in got["errors"]["counts"].items() if n}
    assert counts == {"good": 2, "missed_person": 1}
    assert got["oks_ap"] == pytest.approx(0.9 * 51 / 101)
    assert got["errors"]["ap_lost"]["missed_person"] == pytest.approx(0.9 - 0.9 * 51 / 101)
    assert got["slices"][0]["pck_0.1"] == 0.5
    assert "PCK@0.05 0.250, PCK@0.1 0.500, PCK@0.2 0.500 of the box's longer side." in out
    assert "Keypoints of persons found are 4.0 px off on average, 4.0% of that size." in out
    assert "AP lost most to: missed person" in out


def test_areas_are_refused_or_computed_by_the_rule_that_is_asked_for(evaluate, tmp_path):
    content, results = random_files(4)
    del content["annotations"][0]["area"]
    number = content["annotations"][0]["id"]
    write(tmp_path, content, results)
    status, out, err = evaluate(*FILES)
    assert (status, out) == (2, "")
    assert (
        f"gt.json: annotation {number}: expected a finite 'area' above 0" in err and "area=annotation_else_box" in err
    )
    for rule in ("annotation_else_box", "box"):
        changed = {**content, "annotations": [dict(entry) for entry in content["annotations"]]}
        for entry in changed["annotations"][: 1 if rule == "annotation_else_box" else None]:
            entry["area"] = 0.53 * entry["bbox"][2] * entry["bbox"][3]
        write(tmp_path, changed, results)
        expected = by_pycocotools(COCO_SIGMAS, ("keypoints",))
        write(tmp_path, content, results)
        status, out, _ = evaluate(*FILES, f"area={rule}", "json=out.json")
        got = json.loads((tmp_path / "out.json").read_text())
        assert status == 0
        assert {key: got[key] for key in expected} == pytest.approx(expected, abs=1e-9)
        assert got["passport"]["areas_from_box"] == (
            1 if rule == "annotation_else_box" else len(content["annotations"])
        )
        assert "computed from the box" in out


def test_flat_sigmas_are_said_to_flatter(evaluate, tmp_path):
    content, _ = random_files(6, names=("tip", "tail"))
    results = [
        {"image_id": a["image_id"], "category_id": 1, "score": 0.9, "keypoints": [v + 9 for v in a["keypoints"]]}
        for a in content["annotations"]
    ]
    write(tmp_path, content, results)
    status, out, _ = evaluate(*FILES, "sigmas=flat")
    assert status == 0
    assert "Warning: The OKS AP of" in out and "flatters" in out


@pytest.mark.parametrize("rule", ["annotation_else_box", "box"])
def test_flat_sigmas_of_persons_without_area_flatter_by_the_box(evaluate, tmp_path, rule):
    content, _ = random_files(6, names=("tip", "tail"))
    results = [
        {"image_id": a["image_id"], "category_id": 1, "score": 0.9, "keypoints": [v + 9 for v in a["keypoints"]]}
        for a in content["annotations"]
    ]
    told = []
    for area in (lambda box: {"area": 0.53 * box[2] * box[3]}, lambda box: {}):
        for entry in content["annotations"]:
            entry.pop("area", None)
            entry |= area(entry["bbox"])
        write(tmp_path, content, results)
        status, out, err = evaluate(*FILES, "sigmas=flat", f"area={rule}")
        assert (status, err) == (0, "")
        told.append([line for line in out.splitlines() if "flatters" in line])
    assert len(told[0]) == 1 and told[1] == told[0]


def three_persons(scores):
    """A person in each of three images, each found to the pixel."""
    content, _ = random_files(0, n_images=3)
    content["annotations"] = [
        {"id": n, "image_id": image["id"], "category_id": 1, "bbox": [50, 50, 100, 200], "area": 10000.0, "iscrowd": 0,
         "keypoints": [v for k in range(17) for v in (50 + 5 * k, 60 + 9 * k, 2)], "num_keypoints": 17}
        for n, image in enumerate(content["images"], 1)
    ]  # fmt: skip
    results = [
        {key: annotation[key] for key in ("image_id", "category_id", "keypoints", "bbox")} | {"score": score}
        for annotation, score in zip(content["annotations"], scores, strict=True)
    ]
    return content, results


@pytest.mark.parametrize(
    ("scores", "seen", "counted"),
    [
        ((0.2, 0.1, 0.15), None, 0),
        ((0.2, 0.1, 0.15), 0.1, 3),
        ((0.2, 0.9, 0.9), None, 2),
        ((20, 90, 95), None, 3),
        ((20, 30, 95), 50, 1),
        ((-3, -4, -1), -4, 3),
    ],
)
def test_the_score_from_which_detections_count_is_told_and_asked_for(evaluate, tmp_path, scores, seen, counted):
    """Scores of a scale of their own do not silently make three perfect poses three missed ones."""
    write(tmp_path, *three_persons(scores))
    status, out, err = evaluate(*FILES, "json=out.json", *([] if seen is None else [f"seen={seen}"]))
    got = json.loads((tmp_path / "out.json").read_text())
    assert (status, err) == (0, "")
    assert got["oks_ap"] == pytest.approx(1.0)
    assert got["pck_0.1"] == pytest.approx(counted / 3)
    assert (got["errors"]["counts"]["good"], got["errors"]["counts"]["missed_person"]) == (17 * counted, 3 - counted)
    assert got["passport"]["pck_min_score"] == (0.25 if seen is None else seen)
    told = f"Warning: {3 - counted} of the 3 persons found (OKS of 0.50 or more) are found by detections with a score"
    assert (told in out) == (counted < 2) == bool(got["warnings"])


def test_pck_at_thresholds_and_by_a_size_of_ones_choice(evaluate, tmp_path):
    content, results = random_files(1, names=("head_top", "neck", "left_shoulder", "right_hip"))
    write(tmp_path, content, results)
    words = ("pck_thresholds=[0.03, 0.3]", "pck_reference=torso", "pckh_threshold=0.7", "sigmas=flat", "slices=true")
    status, out, err = evaluate(*FILES, "json=out.json", *words)
    got = json.loads((tmp_path / "out.json").read_text())
    assert (status, err) == (0, "")
    assert [key for key in got if key.startswith("pck")] == ["pck_0.03", "pck_0.3", "pckh_0.7"]
    assert 0 < got["pck_0.03"] < got["pck_0.3"]
    assert got["pckh_0.7"] > 0
    assert got["slices"][0]["pckh_0.7"] == got["pckh_0.7"]
    assert got["passport"]["pck_reference"] == "torso"
    assert f"PCK@0.3 {got['pck_0.3']:.3f}" in out and "of the torso." in out
    write(tmp_path, *random_files(1, names=("tip", "tail")))
    status, out, err = evaluate(*FILES, "pck_reference=torso", "sigmas=flat")
    assert (status, out) == (2, "")
    assert "a torso needs the keypoints left_shoulder and right_hip or" in err


def changed(**changes):
    """A change of the first detection."""
    return lambda content, results: results[0].update(changes)


def annotated(**changes):
    """A change of the first annotation."""
    return lambda content, results: content["annotations"][0].update(changes)


def of_content(**changes):
    return lambda content, results: content.update(changes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (changed(image_id=999), "dt.json[0]: expected a known image_id, one of the 30 in the annotations, got 999"),
        (changed(image_id={"id": 3}), "dt.json[0]: expected a known image_id"),
        (changed(category_id=4), "dt.json[0]: expected a known category_id, one of the 1 in the annotations, got 4"),
        (changed(score="0.5"), "expected a finite number as score, got '0.5'"),
        (changed(score=None), "expected a finite number as score, got None"),
        (changed(keypoints=[float("nan")] * 51), "expected 51 finite keypoint numbers"),
        (changed(keypoints=[1, 2, 3]), "x, y, score of each of 17, got [1, 2, 3]"),
        (changed(bbox=None), "with one; dt.json[0] has none"),
        (lambda content, results: results[0].pop("score"), "dt.json[0]: expected an object with the keys of a COCO"),
        (lambda content, results: results.insert(0, 5), "dt.json[0]: expected an object with the keys of a COCO"),
        (annotated(keypoints=[1] * 48), "gt.json: annotation 1: expected 51 finite keypoint numbers"),
        (annotated(keypoints=[float("inf")] * 51), "gt.json: annotation 1: expected 51 finite keypoint numbers"),
        (annotated(bbox=[0, 0, "3", 4]), "gt.json: annotation 1: expected a finite 'bbox'"),
        (annotated(image_id=999), "gt.json: annotation 1: expected an image and a category of the same file"),
        (annotated(id=2), "gt.json: annotations: expected each id once, got 2 more than once"),
        (annotated(id=[1]), "gt.json: annotations[0]: expected an 'id'"),
        (annotated(iscrowd="yes"), "gt.json: annotation 1: expected iscrowd"),
        (of_content(images=None), "gt.json: expected a list 'images'"),
        (of_content(categories=[{"id": 1, "keypoints": ["a"] * 4}]), "gt.json: expected sigmas for its 4 keypoints"),
        (of_content(categories=[{"id": 1, "keypoints": [f"{k}" for k in range(17)]}]), "or sigmas=coco if they"),
        (of_content(categories=[{"id": 1, "sigmas": [0.1, -1]}]), "expected sigmas as a list of 17 positive numbers"),
        (of_content(categories=[], annotations=[]), "gt.json: expected a COCO keypoint file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_line_and_status_2(evaluate, tmp_path, change, told):
    content, results = random_files(0)
    change(content, results)
    write(tmp_path, content, results)
    status, out, err = evaluate(*FILES, "json=out.json")
    assert (status, out) == (2, "")
    assert err.startswith("posefoundry: ") and told in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"{", "dt.json: expected JSON, got a fault in line 1"),
        (b"\xff\xfe\x00", "dt.json: expected a readable JSON file in UTF-8"),
        (b"[" * 100_000, "dt.json: expected an annotation file, got JSON nested too deep"),
        (b"[" + b"1" * 5000 + b"]", "dt.json: expected JSON of numbers that a program can hold"),
        (b'{"annotations": []}', "dt.json: expected a COCO results file, a list"),
        (b"null", "dt.json: expected a COCO results file, a list"),
        (None, "dt.json: expected a JSON file, found nothing there"),
    ],
)
def test_what_is_no_results_file_is_one_line_and_status_2(evaluate, tmp_path, text, told):
    write(tmp_path, random_files(0)[0], [])
    (tmp_path / "dt.json").unlink()
    if text is not None:
        (tmp_path / "dt.json").write_bytes(text)
    status, out, err = evaluate(*FILES)
    assert (status, out) == (2, "")
    assert told in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["detections=dt.json"], "evaluate: expected annotations="),
        (["annotations=gt.json"], "evaluate: expected detections="),
        ([*FILES, "sigma=coco"], "evaluate: unknown setting 'sigma'; did you mean 'sigmas'?"),
        ([*FILES, "area=mask"], "evaluate: area: expected one of annotation, annotation_else_box, box, got 'mask'"),
        ([*FILES, "json=gt.json"], "evaluate: json: expected a file of its own, got gt.json"),
        ([*FILES, "json=."], "evaluate: json: expected a file to write, got the folder ./"),
        ([*FILES, "json=gt.json/out.json"], "evaluate: json: expected a file that can be written"),
        ([*FILES, "slices=3"], "evaluate: slices: expected true, false, or crossed slices"),
        ([*FILES, "slices=colour&size"], "Slice 'colour&size': expected parts such as size=medium"),
        ([*FILES, "sigmas=0.1"], "sigmas: expected coco, flat, a file or a list of 17 numbers, got 0.1"),
        ([*FILES, "sigmas=[0.1]"], "sigmas: expected sigmas as a list of 17 positive numbers, got 1: [0.1]"),
        ([*FILES, "sigmas=nowhere.yaml"], "or a file, found no file nowhere.yaml"),
        ([*FILES, "sigmas=odd.yaml"], "odd.yaml: expected YAML with sigmas"),
        ([*FILES, "sigmas=other.yaml"], "in the order of the annotations' keypoints, got 'tail' at place 1, where"),
        ([*FILES, "seen=high"], "evaluate: seen: expected a number, the score from which on a detection counts"),
        ([*FILES, "seen=true"], "evaluate: seen: expected a number"),
        ([*FILES, "seen=.nan"], "evaluate: seen: expected a number"),
        ([*FILES, "pck_thresholds=[]"], "evaluate: pck_thresholds: Tuple should have at least 1 item"),
        ([*FILES, "pck_thresholds=[0.1, -1]"], "evaluate: pck_thresholds.1: Input should be greater than 0 (got -1)"),
        ([*FILES, "pck_reference=head"], "evaluate: pck_reference: Input should be 'box' or 'torso' (got 'head')"),
        ([*FILES, "pckh_threshold=0"], "evaluate: pckh_threshold: Input should be greater than 0 (got 0)"),
        ([*FILES, "pck_treshold=1"], "evaluate: unknown setting 'pck_treshold'; did you mean 'pck"),
        ([*FILES, "tags=nowhere.csv"], "evaluate: tags: expected a CSV file, found none at nowhere.csv"),
        ([*FILES, "tags=long.csv"], "evaluate: tags: expected CSV in UTF-8, got long.csv: field larger than"),
        ([*FILES, "tags=size.csv"], "size.csv: the evaluation has slices by 'size' already"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_words_is_one_line_and_status_2(evaluate, tmp_path, words, told):
    write(tmp_path, *random_files(0))
    before = (tmp_path / "gt.json").read_bytes()
    (tmp_path / "odd.yaml").write_text("sigmas: [")
    (tmp_path / "other.yaml").write_text(f"kpt_names: [tail]\nsigmas: {[0.1] * 17}\n")
    (tmp_path / "size.csv").write_text("file_name,size\n3.jpg,big\n")
    (tmp_path / "long.csv").write_text(f"file_name,site\n3.jpg,{'x' * 140_000}\n")
    status, _, err = evaluate(*words)
    assert status == 2
    assert told in err and len(err.splitlines()) == 1 and "Traceback" not in err
    assert (tmp_path / "gt.json").read_bytes() == before
