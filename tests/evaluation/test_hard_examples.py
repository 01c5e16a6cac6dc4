"""Which images are hard, why, and the folder that a person corrects them from: out, corrected, and back."""

import json
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from folders import fingerprint

from posefoundry.config import Convert, Ingest, SyntheticSource
from posefoundry.datasets.coco import CocoKeypoints, load_coco_keypoints
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.hard_examples import choose_hard_examples, detection_oks
from posefoundry.evaluation.oks import OksEvaluator
from posefoundry.evaluation.prelabels import prelabel_of
from posefoundry.files import sha256_of_file
from posefoundry.skeleton import COCO_PERSON, COCO_PERSON_CATEGORY
from posefoundry.stages import convert, ingest


def truth_of(content):
    return CocoKeypoints(content["images"], content["annotations"], content["categories"])


@pytest.fixture
def scene(person, detection, coco):
    """Seven images of one person each: found well, badly, not at all, with a guest, in doubt, and crowds."""
    persons = [person(i, i, 100, 50, 100, 200) for i in range(1, 8)]
    persons[6]["iscrowd"] = 1
    detections = [
        detection(persons[0], 0.9),
        detection(persons[1], 0.9, (12, 0)),
        detection(persons[3], 0.9),
        detection(person(0, 4, 400, 50, 100, 200), 0.8),
        detection(persons[4], 0.3),
        detection(persons[5], 0.9),
        detection(persons[6], 0.9),
    ]
    return truth_of(coco(persons, 7)), detections


def reasons_of(examples):
    return {e.image["id"]: [reason.kind for reason in e.reasons] for e in examples}


def test_each_kind_of_trouble_is_found_and_fine_images_are_not(scene):
    truth, detections = scene
    examples = choose_hard_examples(truth, detections)
    assert reasons_of(examples) == {
        2: ["worst_oks"],
        3: ["worst_oks"],
        4: ["unannotated_person"],
        5: ["low_confidence"],
    }
    sentences = {e.image["id"]: e.reasons[0].sentence for e in examples}
    assert sentences[3] == "Low OKS: 0.00 on average over 1 person, 1 of them missed."
    assert sentences[4] == "Found but not annotated: 1 person, score up to 0.80."
    assert sentences[5] == "Low confidence: 1 person found with a mean score of 0.30."


def test_persons_without_area_are_judged_by_their_box(scene):
    """As the pipeline judges them, which keeps a person of area 0; one who fills .53 of the box has the same OKS."""
    truth, detections = scene
    fills = [a | {"area": 0.53 * a["bbox"][2] * a["bbox"][3]} for a in truth.annotations]
    expected = choose_hard_examples(truth_of({**vars(truth), "annotations": fills}), detections)
    bare = [dict(a) for a in fills]
    bare[1]["area"] = 0
    del bare[2]["area"]
    assert choose_hard_examples(truth_of({**vars(truth), "annotations": bare}), detections) == expected


def test_kinds_take_turns(scene):
    truth, detections = scene
    assert [e.image["id"] for e in choose_hard_examples(truth, detections, count=3)] == [3, 4, 5]
    assert len(choose_hard_examples(truth, detections, count=1)) == 1


def test_disagreement_is_of_what_both_see(scene, detection):
    truth, detections = scene
    production = [dict(entry) for entry in detections]
    assert all(
        "disagreement" not in k for k in reasons_of(choose_hard_examples(truth, detections, production)).values()
    )
    production[0] = detection(truth.annotations[0], 0.9, (14, 0))  # moved by a seventh of its width
    del production[5]  # image 6: the candidate alone sees somebody
    found = {e.image["id"]: e for e in choose_hard_examples(truth, detections, production)}
    assert [reason.kind for reason in found[6].reasons] == ["disagreement"]
    assert found[6].reasons[0].sentence == "Disagreement with production: 1 person seen by one of the two models only."
    assert "alike by OKS" in found[1].reasons[0].sentence
    with pytest.raises(PosefoundryError, match="known image_id"):
        choose_hard_examples(truth, detections, [production[0] | {"image_id": 99}])


def test_the_oks_of_detections_is_that_of_pycocotools(person, detection, coco):
    a = person(1, 1, 100, 50, 100, 200)
    a["area"] = 100 * 200.0
    b = detection(a, 0.9, (9, -4))
    truth = coco([a], 1)
    judged = OksEvaluator(truth, sigmas=COCO_PERSON.sigmas).evaluate_in_detail([b]).every_pair
    ours = detection_oks([detection(a)], [b], np.array(COCO_PERSON.sigmas))
    np.testing.assert_allclose(ours.item(), judged.oks(np.ones((1, 17), bool)).item(), rtol=1e-12)


def test_images_without_annotations_are_judged_by_the_rest(scene):
    truth, detections = scene
    bare = CocoKeypoints(truth.images, [], truth.categories)
    production = detections[:-1]
    assert reasons_of(choose_hard_examples(bare, detections, production)) == {
        5: ["low_confidence"],
        7: ["disagreement"],
    }


def test_visibility_follows_confidence_and_nothing_lies_outside(detection, person):
    found = detection(person(1, 1, -20, 10, 100, 60), 0.8)
    points = np.array(found["keypoints"]).reshape(-1, 3)
    points[:, 2] = 0.9
    points[0] = [30, 20, 0.3]
    points[1] = [30, 20, 0.1]
    points[2] = [-1, 20, 0.9]
    label = prelabel_of(found | {"keypoints": points.ravel().tolist()}, 64, 48, 0.5)
    assert label["bbox"] == [0, 10, 64, 38]
    assert label["area"] == 64 * 38 * 0.5
    assert label["keypoints"][:9] == [30, 20, 1, 0, 0, 0, 0, 0, 0]
    assert label["num_keypoints"] == sum(v > 0 for v in label["keypoints"][2::3])
    assert prelabel_of(found | {"bbox": [70, 0, 5, 5]}, 64, 48, 0.5) is None


SMALL = SyntheticSource(image_size_px=96, train_images=3, val_images=2, test_images=6, max_persons=2)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """What ingest and evaluate leave, with detections that are the truth shaken."""
    monkeypatch.chdir(tmp_path)
    Path("data/corrections").mkdir(parents=True)
    take_in()
    path = Path("data/raw/annotations/test.json")
    rng = np.random.default_rng(3)
    detections = []
    for annotation in load_coco_keypoints(path).annotations:
        points = np.array(annotation["keypoints"], float).reshape(-1, 3)
        points += rng.normal(0, 0.08 * annotation["bbox"][3], points.shape) * [1, 1, 0]
        points[:, 2] = rng.uniform(0.1, 1, len(points))
        detections.append({
            "image_id": annotation["image_id"], "category_id": 1, "bbox": annotation["bbox"],
            "keypoints": points.ravel().round(3).tolist(), "score": round(float(rng.uniform(0.26, 0.9)), 3),
        })  # fmt: skip
    report = Path("reports/evaluate")
    report.mkdir(parents=True)
    (report / "detections.json").write_text(json.dumps(detections))
    (report / "passport.json").write_text(json.dumps({"annotations_sha256": sha256_of_file(path)}))
    return tmp_path


def take_in():
    settings = Ingest(source="synthetic", seed=2, synthetic=SMALL, corrections=Path("data/corrections"))
    ingest.run(settings, raw=Path("data/raw"), report=Path("reports/ingest/report.json"))


@pytest.fixture
def run(command_line):
    return partial(command_line, "hard-examples")


def test_out_corrected_and_back(project, run):
    status, out, err = run("count=3")
    assert (status, err) == (0, "")
    assert "3 of 6 images" in out
    folder = project / "hard_examples"
    again = run("count=3", "out=again")
    assert again[0] == 0
    assert fingerprint(project / "again") == fingerprint(folder)
    exported = load_coco_keypoints(folder / "annotations.json")
    assert all(image["reason"] for image in exported.images)
    assert all(a["score"] >= 0.25 and a["attributes"]["score"] == a["score"] for a in exported.annotations)
    for image in exported.images:
        original = project / "data/raw/images/test" / image["file_name"]
        assert (folder / "images" / image["file_name"]).read_bytes() == original.read_bytes()
    # A person corrects the pre-labels, and the file goes back.
    content = json.loads((folder / "annotations.json").read_text())
    wanted = [float(n) for k in range(17) for n in (20 + k, 30 + k, 2)]
    content["annotations"][0]["keypoints"] = wanted
    target = project / "data/corrections/round_1/annotations.json"
    target.parent.mkdir()
    target.write_text(json.dumps(content))
    before = fingerprint(project / "data/corrections")
    take_in()
    assert fingerprint(project / "data/corrections") == before
    raw = fingerprint(project / "data/raw")
    truth = load_coco_keypoints(project / "data/raw/annotations/test.json")
    assert len(truth.images) == SMALL.test_images
    assert wanted in [a["keypoints"] for a in truth.annotations]
    tagged = (project / "data/raw/tags.csv").read_text().split()
    corrected = {line.split(",")[0] for line in tagged if line.endswith(",yes")}
    assert corrected == {image["file_name"] for image in exported.images}
    convert.run(
        Convert(), raw=Path("data/raw"), yolo=Path("data/yolo"), receipt=Path("r.jsonl"), report=Path("convert.json")
    )
    assert len(list((project / "data/yolo/labels/test").iterdir())) == SMALL.test_images
    take_in()
    assert fingerprint(project / "data/raw") == raw
    # The detections are of the data before the correction.
    status, _, err = run("out=third")
    assert status == 2
    assert "Evaluate again" in err


def test_the_whole_folder_may_come_back_with_label_studios_export(project, run):
    """The other files of the folder are no corrections, and tasks without annotations are not done."""
    run("count=3")
    target = project / "data/corrections/round_1"
    (project / "hard_examples").rename(target)
    (target / "annotations.json").unlink()
    tasks = json.loads((target / "label_studio.json").read_text())
    done = tasks[0] | {"annotations": [{"result": tasks[0]["predictions"][0]["result"]}]}
    (target / "label_studio.json").write_text(json.dumps([done, *tasks[1:]]))
    take_in()
    report = json.loads(Path("reports/ingest/report.json").read_text())["corrections"]
    assert report["corrected"] == {"train": 0, "val": 0, "test": 1}
    assert sum(report["areas"].values()) > 0
    assert "as corrected" not in report["areas"], "Label Studio gives no areas"


def test_the_skeleton_and_the_interface_for_the_tools(project, run):
    run()
    folder = project / "hard_examples"
    (label,) = json.loads((folder / "cvat_labels.json").read_text())
    nodes = ElementTree.fromstring(f"<svg>{label['svg']}</svg>")
    circles = [node for node in nodes if node.tag == "circle"]
    assert [circle.get("data-label-name") for circle in circles] == COCO_PERSON_CATEGORY["keypoints"]
    assert [sub["name"] for sub in label["sublabels"]] == COCO_PERSON_CATEGORY["keypoints"]
    edges = [[int(n.get("data-node-from")), int(n.get("data-node-to"))] for n in nodes if n.tag == "line"]
    assert edges == COCO_PERSON_CATEGORY["skeleton"]
    nose, ankle = (float(circles[k].get("cy")) for k in (0, 15))
    assert 0 <= nose < ankle <= 100, "the template is a person who stands"
    ElementTree.parse(folder / "label_studio.xml")


def test_production_is_compared_where_the_gate_left_its_detections(project, run):
    assert "No model in production" in run("out=a")[1]
    Path("reports/gate").mkdir()
    Path("reports/gate/production_detections.json").write_text("[]")
    status, out, _ = run("out=b")
    assert status == 0
    assert "disagreement" in out


def test_refusals(project, run):
    assert "expected a whole number" in run("count=0")[2]
    assert "did you mean 'count'" in run("counts=3")[2]
    assert "expected images= as well" in run("annotations=data/raw/annotations/test.json")[2]
    run()
    assert "which is not empty" in run()[2]
    Path("reports/evaluate/detections.json").write_text("{}")
    assert "expected a COCO results file" in run("out=c")[2]
    Path("reports/evaluate/detections.json").unlink()
    assert "which the stage evaluate writes" in run("out=c")[2]


def odd(kind, number=0, /, *without, **changes):
    """A change of an entry of one's own files."""

    def change(content, results):
        entry = results[number] if kind == "detections" else content[kind][number]
        for key in without:
            del entry[key]
        entry.update(changes)

    return change


def judge_changed(own_data, run, change):
    content, results = own_data
    change(content, results)
    Path("people.json").write_text(json.dumps(content))
    Path("found.json").write_text(json.dumps(results))
    return run(*OWN)


NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (odd("images", 0, "width", "height"), "people.json: image 1 (and 1 more): expected width and height in px"),
        (odd("images", file_name="/etc/001.png"), "people.json: image 1 (and 1 more): '/etc/001.png' is not the name"),
        (odd("images", weather=NAN), "people.json: image 1 (and 1 more): the record holds NaN"),
        (odd("images", id="1"), "people.json: images[0]: expected 'id' as int, got '1'"),
        (lambda content, results: content.update(images={}), "people.json: expected a list 'images'"),
        (lambda content, results: content["annotations"].append(3), "people.json: expected annotations[2] to be an"),
        (odd("annotations", bbox=None), "people.json: annotation 1: expected bbox as 4 finite numbers, got None"),
        (odd("annotations", keypoints=[1, 2]), "people.json: annotation 1: expected 17 keypoints of 3 values, got 2"),
        (odd("annotations", keypoints=[NAN] * 51), "people.json: annotation 1: expected finite numbers in keypoints"),
        (odd("annotations", area=NAN), "people.json: annotation 1: expected area in px"),
        (odd("annotations", area="7"), "people.json: annotation 1: expected area in px^2 as a finite number, got '7'"),
        (odd("annotations", area=0, bbox=[1, 1, 0, 9]), "people.json: annotation 1: expected a 'bbox' of a width"),
        (odd("annotations", image_id=9), "people.json: annotation 1: no image has the id 9. Correct or remove it."),
        (odd("annotations", 0, "category_id"), "people.json: annotation 1: no category has the id None"),
        (odd("annotations", 1, id=1), "people.json: annotation 1: the id 1 was seen before"),
        (odd("annotations", num_keypoints="x"), "people.json: annotation 1: expected num_keypoints as a number"),
        (odd("detections", bbox=None), "found.json[0]: expected a 'bbox', [x, y, width, height] in px, which"),
        (odd("detections", 0, "bbox"), "the pre-label needs, got no such key. Let the model write boxes too"),
        (odd("detections", bbox=[1, 2, 3]), "found.json[0], of image 1: expected 4 finite box numbers"),
        (odd("detections", bbox=[1, 2, 3, NAN]), "found.json[0], of image 1: expected 4 finite box numbers"),
        (odd("detections", keypoints=[1, 2]), "found.json[0], of image 1: expected 51 finite keypoint numbers"),
        (odd("detections", keypoints=[NAN] * 51), "found.json[0], of image 1: expected 51 finite keypoint numbers"),
        (odd("detections", 0, "score"), "found.json[0]: expected an object with the keys of a COCO keypoint result"),
        (odd("detections", score="high"), "found.json[0], of image 1: expected a finite number as score, got 'high'"),
        (odd("detections", image_id=[1]), "found.json[0]: expected a known image_id"),
        (odd("detections", category_id=5), "found.json[0]: expected a known category_id"),
        (lambda content, results: results.append(None), "found.json[1]: expected an object with the keys of a COCO"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_ones_own_data_is_one_line(own_data, run, change, told):
    status, out, err = judge_changed(own_data, run, change)
    assert (status, out) == (2, "")
    assert told in err and len(err.splitlines()) == 1
    assert not Path("hard_examples").exists()


def test_production_on_ones_own_data_is_named_too(own_data, run):
    content, results = own_data
    Path("people.json").write_text(json.dumps(content))
    Path("found.json").write_text(json.dumps(results))
    Path("before.json").write_text(json.dumps([results[0] | {"image_id": 9}]))
    assert "before.json[0]: expected a known image_id" in run(*OWN, "production=before.json")[2]


@pytest.mark.parametrize(
    "change",
    [
        odd("annotations", area=0),
        odd("annotations", 0, "area"),
        odd("annotations", area=None),
        odd("annotations", 0, "keypoints", num_keypoints=0),
    ],
)
def test_what_the_pipeline_judges_is_no_fault(own_data, run, change):
    """Whose area is missing is judged by the box, who has no keypoints not at all."""
    status, out, err = judge_changed(own_data, run, change)
    assert (status, err) == (0, "")
    assert "2 of 2 images" in out
    kept = json.loads(Path("hard_examples/ground_truth.json").read_text())["annotations"]
    assert kept == own_data[0]["annotations"]


def test_a_picture_that_is_gone_leaves_no_half_folder(project, run):
    for path in Path("data/raw/images/test").iterdir():
        path.unlink()
    assert "found no file" in run()[2]
    assert not Path("hard_examples").exists()


OWN = ("annotations=people.json", "images=.", "detections=found.json")


@pytest.fixture
def own_data(tmp_path, monkeypatch, coco, person, detection):
    """Two images of one person each, of whom one is found in doubt."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        cv2.imwrite(f"{number:03}.png", np.zeros((480, 640, 3), np.uint8))
    persons = [person(i, i, 100, 50, 100, 200) for i in (1, 2)]
    return coco(persons, 2), [detection(persons[0], 0.4)]


def test_ones_own_data(project, run, coco, person, detection):
    cv2.imwrite("001.png", np.zeros((480, 640, 3), np.uint8))
    somebody = person(1, 1, 100, 50, 100, 200)
    Path("people.json").write_text(json.dumps(coco([], 1)))
    Path("found.json").write_text(json.dumps([detection(somebody, 0.4)]))
    status, out, _ = run(*OWN)
    assert status == 0
    assert "001.png: Low confidence" in out
    assert not Path("hard_examples/ground_truth.json").exists()
