"""`posefoundry evaluate`: pycocotools' figures on anybody's files, and a sentence for what may be wrong."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefoundry.evaluation.oks import BOX_METRICS, OKS_METRICS
from posefoundry.skeleton import COCO_SIGMAS

FILES = ("annotations=gt.json", "detections=dt.json")


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


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_are_those_of_pycocotools_on_the_same_files(evaluate, tmp_path, random_files, write, seed):
    write(*random_files(seed))
    status, out, err = evaluate(*FILES, "json=out/figures.json")
    assert (status, err) == (0, "")
    got = json.loads((tmp_path / "out" / "figures.json").read_text())
    expected = by_pycocotools(COCO_SIGMAS)
    assert {key: got[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert 0.02 < got["oks_ap"] < 0.98, "neither trivial nor hopeless"
    assert f"{got['oks_ap']:.4f}" in out and f"{got['box_ap_s']:.4f}" in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["figures.json"]


@pytest.mark.parametrize("given", ["file", "list", "category"])
def test_five_keypoints_in_two_classes_by_their_own_sigmas(evaluate, tmp_path, random_files, write, given):
    sigmas = [0.05, 0.1, 0.025, 0.08, 0.3]
    content, results = random_files(7, names=("a", "b", "c", "d", "e"), n_classes=2)
    (tmp_path / "own.yaml").write_text(f"sigmas: {sigmas}\nkpt_names: [a, b, c, d, e]\n")
    words = {"file": ["sigmas=own.yaml"], "list": [f"sigmas={sigmas}"], "category": []}[given]
    if given == "category":
        content["categories"] = [category | {"sigmas": sigmas} for category in content["categories"]]
    write(content, results)
    assert evaluate(*FILES, "json=out.json", *words)[0] == 0
    got, expected = json.loads((tmp_path / "out.json").read_text()), by_pycocotools(sigmas)
    assert {key: got[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert got["passport"]["sigmas"] == sigmas


def test_results_without_boxes_have_poses_alone(evaluate, tmp_path, random_files, write):
    write(*random_files(2, boxes=False))
    status, out, _ = evaluate(*FILES, "json=out.json")
    got, expected = json.loads((tmp_path / "out.json").read_text()), by_pycocotools(COCO_SIGMAS, ("keypoints",))
    assert status == 0
    assert {key: got[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert {got[key] for key in BOX_METRICS} == {None}
    assert [line.split() for line in out.splitlines() if line.startswith("box AP")] == [["box", "AP"] + ["n/a"] * 6]


def test_what_nobody_is_there_for_is_null_and_n_a(evaluate, tmp_path, random_files, write):
    content, results = random_files(3)
    content["annotations"] = [entry for entry in content["annotations"] if entry["area"] > 96**2]
    write(content, results)
    status, out, _ = evaluate(*FILES, "json=out.json")
    got = json.loads((tmp_path / "out.json").read_text())
    assert status == 0
    assert [got[key] for key in ("oks_ap_m", "oks_ar_m", "box_ap_s", "box_ap_m")] == [None] * 4
    assert got["oks_ap_l"] is not None
    oks = next(line for line in out.splitlines() if line.startswith("OKS AP"))
    assert "n/a" in oks and "-1" not in oks


def test_no_detections_are_worth_zero_and_a_warning(evaluate, tmp_path, random_files, write):
    write(random_files(3)[0], [])
    status, out, err = evaluate(*FILES, "json=out.json")
    got = json.loads((tmp_path / "out.json").read_text())
    assert (status, err, got["oks_ap"], got["oks_ar"], got["box_ap"]) == (0, "", 0.0, 0.0, 0.0)
    assert "Warning: There is not a single detection" in out and len(got["warnings"]) == 1


def test_counts_that_are_missing_are_computed(evaluate, tmp_path, random_files, write):
    content, results = random_files(5)
    content["annotations"] = [entry for entry in content["annotations"] if not entry["iscrowd"]]
    write(content, results)
    expected = by_pycocotools(COCO_SIGMAS)
    for entry in content["annotations"]:
        del entry["iscrowd"], entry["num_keypoints"]
    write(content, results)
    assert evaluate(*FILES, "json=out.json")[0] == 0
    got = json.loads((tmp_path / "out.json").read_text())
    assert {key: got[key] for key in expected} == pytest.approx(expected, abs=1e-9)


def test_slices_and_tags(evaluate, tmp_path, random_files, write):
    content, results = random_files(1)
    night = {image["id"] for image in content["images"][::2]}
    rows = "".join(f"{image['file_name']},{'night' if image['id'] in night else ''}\n" for image in content["images"])
    (tmp_path / "tags.csv").write_text("file_name,time\n" + rows)
    write(content, results)
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
    write(content, [entry for entry in results if entry["image_id"] in night])
    expected = by_pycocotools(COCO_SIGMAS, ("keypoints",))
    assert [rows["time=night"][key] for key in ("oks_ap", "oks_ap75", "oks_ar")] == pytest.approx(
        [expected[key] for key in ("oks_ap", "oks_ap75", "oks_ar")], abs=1e-9
    )


def test_exactness_and_kinds_of_error_are_told(evaluate, tmp_path, random_files, write):
    # Two persons in boxes of 100 px, one of whom is missed. Of the other the first of two keypoints is 8 px off, good
    # still: exp(-8^2 / (2 * 5000 * (2 * .1)^2)) = .852 is no less than .85. OKS .926: found at 9 of 10 thresholds.
    content, _ = random_files(0, names=("tip", "tail"), n_images=2)
    content["annotations"] = [
        {"id": n, "image_id": image["id"], "category_id": 1, "bbox": [50, 50, 100, 100], "area": 5000.0, "iscrowd": 0,
         "keypoints": [60, 60, 2, 140, 140, 2], "num_keypoints": 2}
        for n, image in enumerate(content["images"], 1)
    ]  # fmt: skip
    found = {"image_id": content["images"][0]["id"], "category_id": 1, "score": 0.9, "bbox": [50, 50, 100, 100]}
    write(content, [found | {"keypoints": [68, 60, 1, 140, 140, 1]}])
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


def test_areas_are_refused_or_computed_by_the_rule_that_is_asked_for(evaluate, tmp_path, random_files, write):
    content, results = random_files(4)
    del content["annotations"][0]["area"]
    number = content["annotations"][0]["id"]
    write(content, results)
    status, out, err = evaluate(*FILES)
    assert (status, out) == (2, "")
    assert (
        f"gt.json: annotation {number}: expected a finite 'area' above 0" in err and "area=annotation_else_box" in err
    )
    for rule in ("annotation_else_box", "box"):
        changed = {**content, "annotations": [dict(entry) for entry in content["annotations"]]}
        for entry in changed["annotations"][: 1 if rule == "annotation_else_box" else None]:
            entry["area"] = 0.53 * entry["bbox"][2] * entry["bbox"][3]
        write(changed, results)
        expected = by_pycocotools(COCO_SIGMAS, ("keypoints",))
        write(content, results)
        status, out, _ = evaluate(*FILES, f"area={rule}", "json=out.json")
        got = json.loads((tmp_path / "out.json").read_text())
        assert status == 0
        assert {key: got[key] for key in expected} == pytest.approx(expected, abs=1e-9)
        assert got["passport"]["areas_from_box"] == (
            1 if rule == "annotation_else_box" else len(content["annotations"])
        )
        assert "computed from the box" in out


def test_flat_sigmas_are_said_to_flatter(evaluate, random_files, write):
    content, _ = random_files(6, names=("tip", "tail"))
    results = [
        {"image_id": a["image_id"], "category_id": 1, "score": 0.9, "keypoints": [v + 9 for v in a["keypoints"]]}
        for a in content["annotations"]
    ]
    write(content, results)
    status, out, _ = evaluate(*FILES, "sigmas=flat")
    assert status == 0
    assert "Warning: The OKS AP of" in out and "flatters" in out


@pytest.mark.parametrize("rule", ["annotation_else_box", "box"])
def test_flat_sigmas_of_persons_without_area_flatter_by_the_box(evaluate, random_files, write, rule):
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
        write(content, results)
        status, out, err = evaluate(*FILES, "sigmas=flat", f"area={rule}")
        assert (status, err) == (0, "")
        told.append([line for line in out.splitlines() if "flatters" in line])
    assert len(told[0]) == 1 and told[1] == told[0]


def three_persons(content, scores):
    """A person in each of three images, each found to the pixel."""
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
def test_the_score_from_which_detections_count_is_told_and_asked_for(
    evaluate, tmp_path, write, random_files, scores, seen, counted
):
    """Scores of a scale of their own do not silently make three perfect poses three missed ones."""
    write(*three_persons(random_files(0, n_images=3)[0], scores))
    status, out, err = evaluate(*FILES, "json=out.json", *([] if seen is None else [f"seen={seen}"]))
    got = json.loads((tmp_path / "out.json").read_text())
    assert (status, err) == (0, "")
    assert got["oks_ap"] == pytest.approx(1.0)
    assert got["pck_0.1"] == pytest.approx(counted / 3)
    assert (got["errors"]["counts"]["good"], got["errors"]["counts"]["missed_person"]) == (17 * counted, 3 - counted)
    assert got["passport"]["pck_min_score"] == (0.25 if seen is None else seen)
    told = f"Warning: {3 - counted} of the 3 persons found (OKS of 0.50 or more) are found by detections with a score"
    assert (told in out) == (counted < 2) == bool(got["warnings"])


def test_pck_at_thresholds_and_by_a_size_of_ones_choice(evaluate, tmp_path, random_files, write):
    content, results = random_files(1, names=("head_top", "neck", "left_shoulder", "right_hip"))
    write(content, results)
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
    write(*random_files(1, names=("tip", "tail")))
    status, out, err = evaluate(*FILES, "pck_reference=torso", "sigmas=flat")
    assert (status, out) == (2, "")
    assert "a torso needs the keypoints left_shoulder and right_hip or" in err
