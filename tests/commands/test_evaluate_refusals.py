"""What `posefoundry evaluate` refuses, each in one line."""

import pytest

FILES = ("annotations=gt.json", "detections=dt.json")


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
def test_what_is_wrong_with_a_file_is_one_line_and_status_2(evaluate, tmp_path, random_files, write, change, told):
    content, results = random_files(0)
    change(content, results)
    write(content, results)
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
def test_what_is_no_results_file_is_one_line_and_status_2(evaluate, tmp_path, random_files, write, text, told):
    write(random_files(0)[0], [])
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
        ([*FILES, "json=gt.json"], "evaluate: json: expected another file than the inputs, got gt.json"),
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
def test_what_is_wrong_with_the_words_is_one_line_and_status_2(evaluate, tmp_path, random_files, write, words, told):
    write(*random_files(0))
    before = (tmp_path / "gt.json").read_bytes()
    (tmp_path / "odd.yaml").write_text("sigmas: [")
    (tmp_path / "other.yaml").write_text(f"kpt_names: [tail]\nsigmas: {[0.1] * 17}\n")
    (tmp_path / "size.csv").write_text("file_name,size\n3.jpg,big\n")
    (tmp_path / "long.csv").write_text(f"file_name,site\n3.jpg,{'x' * 140_000}\n")
    status, _, err = evaluate(*words)
    assert status == 2
    assert told in err and len(err.splitlines()) == 1 and "Traceback" not in err
    assert (tmp_path / "gt.json").read_bytes() == before
