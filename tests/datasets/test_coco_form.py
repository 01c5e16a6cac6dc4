"""COCO keypoint files: what is refused whole, what is set aside record by record, what stays as it is."""

import copy
import json
import math

import pytest

from posefoundry.datasets.coco import (
    CocoKeypoints,
    flat_name,
    load_coco_keypoints,
    set_faults_aside,
    write_coco_keypoints,
)
from posefoundry.errors import PosefoundryError
from posefoundry.skeleton import COCO_PERSON, COCO_PERSON_CATEGORY


def person(annotation_id, on_image, **changes):
    keypoints = [10.5, 20.25, 2] * 16 + [0, 0, 0]
    return {
        "id": annotation_id, "image_id": on_image, "category_id": 1, "bbox": [5.0, 6.0, 30.0, 40.0], "area": 600.5,
        "iscrowd": 0, "keypoints": keypoints, "num_keypoints": 16, "segmentation": [[1, 2, 3, 4, 5, 6]],
    } | changes  # fmt: skip


def image(image_id, file_name, **changes):
    return {"id": image_id, "file_name": file_name, "width": 64, "height": 48} | changes


@pytest.fixture
def content():
    return CocoKeypoints(
        images=[image(1, "a.jpg"), image(2, "b.jpg")],
        annotations=[person(11, 1), person(12, 2)],
        categories=[COCO_PERSON_CATEGORY],
        info={"year": 2026},
        licenses=[{"id": 1, "name": "CC"}],
    )


def test_what_is_written_reads_back_equal(content, tmp_path):
    write_coco_keypoints(tmp_path / "a.json", content)
    assert load_coco_keypoints(tmp_path / "a.json") == content
    assert content.skeleton == COCO_PERSON


def test_annotations_of_image_knows_images_without_any(content):
    content.images.append(image(3, "c.jpg"))
    by_image = content.annotations_of_image()
    assert [a["id"] for a in by_image[1]] == [11]
    assert by_image[3] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"images": [}', "line 1, column 13"),
        ("[1, 2]", "expected a JSON object of COCO keypoint form, got a list"),
        ("null", "got null"),
        ('{"images": [], "annotations": []}', "expected a list 'categories'"),
        ('{"images": {}, "annotations": [], "categories": []}', "expected a list 'images'"),
        ('{"images": [7], "annotations": [], "categories": []}', "expected images[0] to be an object, got a number"),
        ('{"images": [], "annotations": [], "categories": []}', "expected a category with keypoints"),
        ("\xff\xfe", "expected"),
    ],
)
def test_a_file_of_another_form_is_refused_with_its_name(tmp_path, text, told):
    path = tmp_path / "broken.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PosefoundryError) as caught:
        load_coco_keypoints(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(PosefoundryError, match="found nothing there"):
        load_coco_keypoints(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("key", "change", "told"),
    [
        ("images", {"id": "1"}, "images[0]: expected 'id' as int, got '1'"),
        ("images", {"id": True}, "expected 'id' as int, got True"),
        ("images", {"file_name": None}, "images[0] (id 1): expected 'file_name' as str, got None"),
        ("annotations", {"image_id": 1.0}, "annotations[0] (id 11): expected 'image_id' as int, got 1.0"),
        ("categories", {"keypoints": "nose"}, "expected 'keypoints' as list"),
        ("categories", {"keypoints": [1]}, "expected keypoints as names"),
        ("categories", {"keypoints": ["a", "a"]}, "distinct keypoint names"),
        ("categories", {"skeleton": [[1, 99]]}, "right_ankle), got [1, 99]"),
        ("categories", {"skeleton": [[1]]}, "not a skeleton"),
    ],
)
def test_a_record_of_the_wrong_type_is_refused_with_its_place(content, tmp_path, key, change, told):
    broken = json.loads(json.dumps(vars(content)))
    broken[key][0].update(change)
    (tmp_path / "a.json").write_text(json.dumps(broken))
    with pytest.raises(PosefoundryError) as caught:
        load_coco_keypoints(tmp_path / "a.json")
    assert told in str(caught.value)


def test_an_absent_id_is_told_from_a_wrong_one(content, tmp_path):
    broken = json.loads(json.dumps(vars(content)))
    del broken["annotations"][1]["id"]
    (tmp_path / "a.json").write_text(json.dumps(broken))
    with pytest.raises(PosefoundryError, match=r"annotations\[1\]: expected 'id' as int, got no such key"):
        load_coco_keypoints(tmp_path / "a.json")


def test_categories_with_different_keypoints_are_refused(content, tmp_path):
    dog = {"id": 2, "name": "dog", "keypoints": ["tail"], "skeleton": []}
    write_coco_keypoints(tmp_path / "a.json", CocoKeypoints([], [], [COCO_PERSON_CATEGORY, dog]))
    with pytest.raises(PosefoundryError, match=r"'dog'.* has other keypoints than 'person'"):
        load_coco_keypoints(tmp_path / "a.json")


def test_sound_records_are_kept_verbatim(content):
    odd_but_sound = [
        person(13, 1, iscrowd=1, keypoints=[0] * 51, num_keypoints=0, segmentation={"counts": [1], "size": [48, 64]}),
        person(14, 1, bbox=[0, 0, 0, 0], area=0),  # no area
        person(17, 1, area=None),  # nobody measured it
        person(15, 1, bbox=[-900, 0, 5, 5]),  # outside
        person(16, 1, keypoints=[0] * 51, num_keypoints=0, attributes={"pose": "sitting"}),
    ]
    content.annotations.extend(odd_but_sound)
    before = copy.deepcopy(content)
    kept, aside = set_faults_aside(content, "train")
    assert aside == []
    assert kept == before


def test_missing_iscrowd_is_zero_and_missing_num_keypoints_is_counted(content):
    del content.annotations[0]["iscrowd"], content.annotations[0]["num_keypoints"]
    kept, aside = set_faults_aside(content, "train")
    assert not aside
    assert (kept.annotations[0]["iscrowd"], kept.annotations[0]["num_keypoints"]) == (0, 16)


NAN_KEYPOINT = [math.nan, *[1] * 50]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_id": 99}, "unknown_image"),
        ({"id": 12}, "duplicate_annotation_id"),
        ({"category_id": 7}, "unknown_category"),
        ({"category_id": None}, "unknown_category"),
        ({"bbox": [1, 2, 3]}, "bbox_invalid"),
        ({"bbox": [1, 2, math.nan, 4]}, "bbox_invalid"),
        ({"bbox": [1, 2, "3", 4]}, "bbox_invalid"),
        ({"bbox": None}, "bbox_invalid"),
        ({"bbox": [10**400, 2, 3, 4]}, "bbox_invalid"),
        ({"keypoints": None}, "keypoints_length"),
        ({"keypoints": [1, 2, 2]}, "keypoints_length"),
        ({"keypoints": NAN_KEYPOINT}, "keypoints_not_finite"),
        ({"keypoints": [math.inf, *[1] * 50]}, "keypoints_not_finite"),
        ({"keypoints": [None, *[1] * 50]}, "keypoints_not_finite"),
        ({"keypoints": [1, 1, 3] + [1] * 48}, "visibility_invalid"),
        ({"keypoints": [1, 1, 0.5] + [1] * 48}, "visibility_invalid"),
        ({"iscrowd": 2}, "iscrowd_invalid"),
        ({"area": "12"}, "area_invalid"),
        ({"area": None, "bbox": [5.0, 6.0, 0.0, 40.0]}, "area_missing"),
        ({"area": math.nan}, "area_invalid"),
        ({"segmentation": [[math.nan, 1]]}, "not_finite"),
    ],
)
def test_a_faulty_annotation_is_set_aside_with_its_reason(content, change, reason):
    content.annotations.append(person(13, 1, **change))
    kept, aside = set_faults_aside(content, "val")
    assert [a["id"] for a in kept.annotations] == [11, 12]
    assert [(entry.split, entry.reason) for entry in aside] == [("val", reason)]
    assert aside[0].annotation is content.annotations[-1]
    assert (aside[0].image is None) == (reason == "unknown_image")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (image(3, "../secret.jpg"), "unsafe_file_name"),
        (image(3, "/etc/passwd"), "unsafe_file_name"),
        (image(3, "a/../../b.jpg"), "unsafe_file_name"),
        (image(3, "..\\b.jpg"), "unsafe_file_name"),
        (image(3, ""), "unsafe_file_name"),
        (image(3, "c\0.jpg"), "unsafe_file_name"),
        (image(3, "c\n.jpg"), "unsafe_file_name"),
        (image(3, "c\ud800.jpg"), "unsafe_file_name"),
        (image(3, "c" * 300 + ".jpg"), "unsafe_file_name"),
        (image(3, "a.jpg"), "duplicate_file_name"),
        (image(3, "./a.jpg"), "duplicate_file_name"),
        (image(3, "c.jpg", width=None), "image_size_missing"),
        (image(3, "c.jpg", height=0), "image_size_missing"),
        (image(3, "c.jpg", gps=math.nan), "not_finite"),
    ],
)
def test_a_faulty_image_is_set_aside_with_its_annotations(content, record, reason):
    content.images.append(record)
    content.annotations.append(person(13, 3))
    kept, aside = set_faults_aside(content, "train")
    assert [i["id"] for i in kept.images] == [1, 2]
    assert [a["id"] for a in kept.annotations] == [11, 12]
    assert [(entry.reason, entry.annotation is None) for entry in aside] == [(reason, True), (reason, False)]


def test_an_id_that_stands_for_two_files_loses_both(content):
    content.images.append(image(1, "other.jpg"))
    kept, aside = set_faults_aside(content, "train")
    assert [i["id"] for i in kept.images] == [2]
    assert {entry.reason for entry in aside} == {"duplicate_image_id"}
    assert [entry.annotation["id"] for entry in aside if entry.annotation] == [11]


def test_a_repeated_image_record_costs_no_annotation(content):
    content.images.append(image(1, "a.jpg"))
    kept, aside = set_faults_aside(content, "train")
    assert [a["id"] for a in kept.annotations] == [11, 12]
    assert [(entry.reason, entry.annotation) for entry in aside] == [("duplicate_image_id", None)]


def test_names_become_bare_without_colliding():
    assert flat_name("a.jpg") == "a.jpg"
    assert flat_name("./day/a.jpg") == "day__a.jpg"
