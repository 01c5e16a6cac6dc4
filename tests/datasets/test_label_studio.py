"""Label Studio's JSON: what is written as a prediction comes back as an annotation, and faults are named."""

import copy
import xml.etree.ElementTree as ElementTree

import pytest

from posefoundry.datasets.label_studio import is_label_studio, labelling_config, read_export, task_of_image
from posefoundry.errors import PosefoundryError

CATEGORIES = [{"id": 3, "name": "person", "keypoints": ["nose", "left_ear", "right_ear"], "skeleton": []}]
NAMES = ("nose", "left_ear", "right_ear")
IMAGE = {"id": 5, "file_name": "night__a.png", "width": 200, "height": 100}
PERSON = {
    "id": 7, "image_id": 5, "category_id": 3, "bbox": [20.0, 10.0, 50.5, 60.25], "score": 0.7,
    "keypoints": [30.5, 20.25, 2, 35.0, 22.0, 1, 0, 0, 0],
}  # fmt: skip


def exported(**changes):
    """What Label Studio exports after somebody accepted the prediction of one task."""
    task = task_of_image(IMAGE, [PERSON], {3: "person"}, NAMES, extra={"reason": "Low OKS."})
    result = copy.deepcopy(task["predictions"][0]["result"])
    return {"id": 11, "data": task["data"], "annotations": [{"was_cancelled": False, "result": result}]} | changes


def read(*tasks, path="export.json"):
    return read_export(path, list(tasks), CATEGORIES)


def region(task, name):
    return next(r for r in task["annotations"][0]["result"] if r["id"].endswith(name) and r["type"] != "choices")


def test_a_prediction_comes_back_as_it_was():
    content = read(exported())
    assert content.images == [{"id": 1, "file_name": "night__a.png", "width": 200, "height": 100}]
    (person,) = content.annotations
    assert person["category_id"] == 3
    assert person["bbox"] == pytest.approx(PERSON["bbox"], abs=0.002)
    assert person["keypoints"] == pytest.approx(PERSON["keypoints"], abs=0.002)
    assert person["num_keypoints"] == 2


def test_tasks_that_nobody_did_are_left_out_and_the_last_annotation_counts():
    skipped = exported(annotations=[{"was_cancelled": True, "result": []}])
    assert read(exported(annotations=[]), skipped).images == []
    twice = exported()
    twice["annotations"].append({"result": []})
    content = read(twice)
    assert (len(content.images), content.annotations) == (1, [])
    assert content.images[0]["width"] == 200, "an empty result has no size of its own; the task's data has"


def test_a_keypoint_outside_the_tree_goes_to_the_only_box_around_it():
    task = exported()
    del region(task, "-nose")["parentID"]
    assert read(task).annotations[0]["keypoints"][2] == 2
    region(task, "-nose")["value"]["x"] = 99.0
    with pytest.raises(PosefoundryError, match=r"task 11: the nose at 198, 20 px belongs to no box"):
        read(task)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("/data/upload/3/1a2b3c4d-a.png", "a.png"),
        ("/data/local-files/?d=images/a%20b.png", "a b.png"),
        ("https://x.org/folder/a.png?token=1", "a.png"),
    ],
)
def test_the_file_name_is_found_in_the_address(image, name):
    task = exported()
    task["data"] = {"image": image}
    assert read(task).images[0]["file_name"] == name


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: region(t, "p7")["value"].update(rotation=10), "expected upright boxes"),
        (lambda t: region(t, "p7")["value"].update(rectanglelabels=["dog"]), "classes person, got 'dog'"),
        (lambda t: region(t, "-nose")["value"].update(keypointlabels=["tail"]), "expected one of the keypoints"),
        (lambda t: region(t, "-left_ear")["value"].update(keypointlabels=["nose"]), "expected one nose a person"),
        (lambda t: region(t, "-nose").pop("original_width"), "Export as JSON"),
        (lambda t: t.update(data={"text": 3}), "expected its picture"),
    ],
)
def test_faults_are_named(spoil, message):
    task = exported()
    spoil(task)
    with pytest.raises(PosefoundryError, match=message):
        read(task)


def test_the_interface_has_the_names_that_tasks_use():
    config = ElementTree.fromstring(labelling_config(["person", 'a "b" & c'], NAMES))
    labels = [label.get("value") for label in config.find("KeyPointLabels")]
    assert labels == list(NAMES)
    assert [label.get("value") for label in config.find("RectangleLabels")] == ["person", 'a "b" & c']
    controls = {child.get("name") for child in config}
    assert {r["from_name"] for r in exported()["annotations"][0]["result"]} <= controls


def test_forms_are_told_apart():
    assert is_label_studio([exported()])
    assert not is_label_studio({"images": []})
    assert not is_label_studio([{"kind": "worst_oks"}])
