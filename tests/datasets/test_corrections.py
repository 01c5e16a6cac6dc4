"""Corrected annotations on their way back: found, laid over, completed, recorded; the source untouched."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from folders import fingerprint

from posefoundry.config import Convert, Ingest, SyntheticSource
from posefoundry.datasets.coco import load_coco_keypoints
from posefoundry.errors import PosefoundryError
from posefoundry.skeleton import COCO_PERSON_CATEGORY
from posefoundry.stages import convert, ingest

SMALL = SyntheticSource(image_size_px=96, train_images=5, val_images=2, test_images=4, max_persons=2)


class Round:
    """A project with synthetic data and a folder of corrections."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.corrections = root / "corrections"
        self.corrections.mkdir(parents=True)

    def ingest(self, name="raw", **settings):
        raw, report = self.root / name, self.root / f"{name}.json"
        all_settings = {
            "source": "synthetic",
            "seed": 1,
            "synthetic": SMALL,
            "corrections": self.corrections,
        } | settings
        ingest.run(Ingest(**all_settings), raw=raw, report=report)
        return raw, json.loads(report.read_text())

    def write(self, place, images, annotations, categories=None):
        path = self.corrections / place
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": categories or [COCO_PERSON_CATEGORY]}
        path.write_text(json.dumps(content))
        return path


@pytest.fixture
def project(tmp_path):
    return Round(tmp_path)


def split_of(raw, split):
    return load_coco_keypoints(raw / "annotations" / f"{split}.json")


def image_with_persons(content, skip=0):
    of_image = content.annotations_of_image()
    found = [i for i in content.images if any(a["num_keypoints"] > 5 and not a["iscrowd"] for a in of_image[i["id"]])]
    return found[skip], of_image[found[skip]["id"]]


def moved(annotations, by_px=2.0):
    """The persons with keypoints, each labelled keypoint moved to the right; ids of the tool's own."""
    persons = [a for a in annotations if a["num_keypoints"] and not a["iscrowd"]]
    result = []
    for number, annotation in enumerate(persons):
        points = np.array(annotation["keypoints"], float).reshape(-1, 3)
        points[points[:, 2] > 0, 0] += by_px
        result.append(annotation | {"id": number + 1, "image_id": 1, "keypoints": points.ravel().tolist()})
    return result


def image_record(image):
    return {"id": 1, **{key: image[key] for key in ("file_name", "width", "height")}}


def test_a_corrected_test_image_stays_in_test_and_is_tagged(project):
    before, _ = project.ingest("before", corrections=None)
    truth = split_of(before, "test")
    image, annotations = image_with_persons(truth)
    path = project.write("round_1/annotations.json", [image_record(image)], moved(annotations))
    source = fingerprint(project.corrections)
    raw, report = project.ingest()
    after = split_of(raw, "test")
    assert after.images == truth.images
    new = after.annotations_of_image()[image["id"]]
    corrected = [a for a in new if a["num_keypoints"] and not a["iscrowd"]]
    for a, b in zip(moved(annotations), corrected, strict=True):
        assert (b["keypoints"], b["bbox"], b["area"]) == (a["keypoints"], a["bbox"], a["area"])
    others = [a for a in truth.annotations if a["image_id"] != image["id"]]
    assert [a for a in after.annotations if a["image_id"] != image["id"]] == others
    ids = [a["id"] for split in ("train", "val", "test") for a in split_of(raw, split).annotations]
    assert len(set(ids)) == len(ids)
    tags = (raw / "tags.csv").read_text().splitlines()
    assert tags[0] == "file_name,corrected"
    assert [line for line in tags[1:] if line.endswith(",yes")] == [f"{image['file_name']},yes"]
    assert len(tags) == 1 + SMALL.test_images
    assert report["corrections"]["corrected"] == {"train": 0, "val": 0, "test": 1}
    manifest = json.loads((raw / "manifest.json").read_text())
    (file,) = manifest["source"]["corrections"]["files"]
    assert file["path"] == path.relative_to(project.corrections).as_posix()
    assert file["images"] == [{"split": "test", "file_name": image["file_name"], "change": "corrected"}]
    assert fingerprint(project.corrections) == source
    convert.run(
        Convert(),
        raw=raw,
        yolo=project.root / "yolo",
        receipt=project.root / "receipt.jsonl",
        report=project.root / "convert.json",
    )
    labels = [
        folder / "labels" / "test" / f"{Path(image['file_name']).stem}.txt" for folder in (project.root / "yolo",)
    ]
    assert labels[0].read_text()
    again, _ = project.ingest("again")
    assert fingerprint(again) == fingerprint(raw)


def test_without_corrections_nothing_changes_but_an_empty_table(project):
    without, _ = project.ingest("without", corrections=None)
    with_empty, report = project.ingest("empty")
    assert fingerprint(with_empty) == fingerprint(without)
    assert (without / "tags.csv").read_text() == "file_name\n"
    assert "corrections" not in report


def test_what_keypoint_tools_cannot_show_stays(project):
    """A crowd, and a person whose keypoints nobody labelled, are no errors of whoever corrected the others."""
    before, _ = project.ingest("before", corrections=None, seed=1)
    image, annotations = image_with_persons(split_of(before, "train"))
    persons = moved(annotations)
    project.write("a/first.json", [image_record(image)], persons)
    raw, _ = project.ingest()
    kept = {a["id"] for a in annotations if a["iscrowd"] or not a["num_keypoints"]}
    new = split_of(raw, "train").annotations_of_image()[image["id"]]
    assert kept == {a["id"] for a in new} & {a["id"] for a in annotations}
    assert len(new) == len(kept) + len(persons)


def test_the_box_and_area_that_a_tool_made_of_points_are_completed(project):
    """CVAT's box is the extent of the skeleton's points, and its area that of the box."""
    before, _ = project.ingest("before", corrections=None)
    image, annotations = image_with_persons(split_of(before, "test"))
    persons = moved(annotations, by_px=0)
    originals = [dict(person) for person in persons]
    for person in persons:
        points = np.array(person["keypoints"]).reshape(-1, 3)
        low, high = (getattr(points[points[:, 2] > 0, :2], side)(axis=0) for side in ("min", "max"))
        person["bbox"] = [*low.tolist(), *(high - low).tolist()]
        person["area"] = float((high - low).prod())
    project.write("cvat/person_keypoints_default.json", [image_record(image)], persons)
    raw, report = project.ingest()
    new = split_of(raw, "test").annotations_of_image()[image["id"]]
    new = [a for a in new if a["num_keypoints"] and not a["iscrowd"]]
    for original, found in zip(originals, new, strict=True):
        np.testing.assert_allclose(found["bbox"], original["bbox"], atol=1.5)
        assert found["area"] == pytest.approx(original["area"], rel=0.1)
    assert report["corrections"]["boxes"] == {"from the person it corrects": len(persons)}
    assert report["corrections"]["areas"] == {"from the person it corrects": len(persons)}


def test_a_new_person_gets_the_margins_and_the_area_of_the_data(project):
    before, _ = project.ingest("before", corrections=None)
    of_image = split_of(before, "test").annotations_of_image()
    image = next((i for i in split_of(before, "test").images if not of_image[i["id"]]), None)
    image = image or image_with_persons(split_of(before, "test"))[0]
    corner = [0.0, 0.0, 2] * 8 + [12.0, 30.0, 2] * 9
    person = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 12, 30], "keypoints": corner}
    project.write("a/new.json", [image_record(image)], [person])
    raw, _ = project.ingest()
    manifest = json.loads((raw / "manifest.json").read_text())["source"]["corrections"]
    (new,) = [a for a in split_of(raw, "test").annotations_of_image()[image["id"]] if a["num_keypoints"] == 17
              and a["keypoints"] == corner]  # fmt: skip
    assert new["area"] == pytest.approx(manifest["area_of_box"] * new["bbox"][2] * new["bbox"][3], rel=1e-3)
    assert 0.2 < manifest["area_of_box"] < 0.8
    assert new["bbox"][2] > 12 and new["bbox"][3] > 30, "bodies reach beyond their keypoints"


def test_a_new_image_comes_with_its_picture(project):
    picture = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))[1].tobytes()
    record = {"id": 4, "file_name": "night/new.png", "width": 80, "height": 60}
    person = {
        "id": 1, "image_id": 4, "category_id": 1, "bbox": [10, 10, 30, 40], "area": 500.0,
        "keypoints": [20, 20, 2] * 17,
    }  # fmt: skip
    project.write("b/annotations.json", [record], [person])
    with pytest.raises(PosefoundryError, match=r"no picture of that name is in .*b"):
        project.ingest()
    assert not (project.root / "raw").exists()
    (project.corrections / "b" / "images").mkdir()
    (project.corrections / "b" / "images" / "new.png").write_bytes(picture)
    raw, report = project.ingest(corrections_split="val")
    assert (raw / "images" / "val" / "night__new.png").read_bytes() == picture
    content = split_of(raw, "val")
    assert content.images[-1]["file_name"] == "night__new.png"
    assert [a["area"] for a in content.annotations if a["image_id"] == content.images[-1]["id"]] == [500.0]
    assert report["corrections"]["added"] == {"train": 0, "val": 1, "test": 0}
    (project.corrections / "b" / "images" / "new.png").write_bytes(picture[:-20])
    with pytest.raises(PosefoundryError, match="A new image must be whole"):
        project.ingest("broken")


def test_a_renamed_image_is_known_by_its_content(project):
    before, _ = project.ingest("before", corrections=None)
    image, annotations = image_with_persons(split_of(before, "val"))
    record = image_record(image) | {"file_name": "upload-77.jpg"}
    project.write("a/annotations.json", [record], moved(annotations))
    content = (before / "images" / "val" / image["file_name"]).read_bytes()
    (project.corrections / "a" / "upload-77.jpg").write_bytes(content)
    raw, report = project.ingest()
    assert report["corrections"]["corrected"] == {"train": 0, "val": 1, "test": 0}
    assert report["corrections"]["added"]["train"] == 0
    assert split_of(raw, "val").images == split_of(before, "val").images


def test_another_picture_of_a_known_name_is_refused(project):
    before, _ = project.ingest("before", corrections=None)
    image, annotations = image_with_persons(split_of(before, "val"))
    project.write("a/annotations.json", [image_record(image)], moved(annotations))
    (project.corrections / "a" / image["file_name"]).write_bytes(b"something else")
    with pytest.raises(PosefoundryError, match="is another picture than the one of that name"):
        project.ingest()


def test_the_last_round_decides_and_one_round_may_not_contradict_itself(project):
    before, _ = project.ingest("before", corrections=None)
    image, annotations = image_with_persons(split_of(before, "test"))
    for name, by_px in (("round_2", 4.0), ("round_1", 1.0)):
        project.write(f"{name}/annotations.json", [image_record(image)], moved(annotations, by_px))
    raw, _ = project.ingest()
    new = split_of(raw, "test").annotations_of_image()[image["id"]]
    assert moved(annotations, 4.0)[0]["keypoints"] in [a["keypoints"] for a in new]
    files = json.loads((raw / "manifest.json").read_text())["source"]["corrections"]["files"]
    assert [(file["path"], len(file["images"]), file["superseded"]) for file in files] == [
        ("round_1/annotations.json", 0, 1),
        ("round_2/annotations.json", 1, 0),
    ]
    project.write("round_2/more.json", [image_record(image)], moved(annotations))
    with pytest.raises(PosefoundryError, match="of the same round"):
        project.ingest("third")


def test_an_image_without_annotations_says_that_nobody_is_there(project):
    before, _ = project.ingest("before", corrections=None)
    image, _ = image_with_persons(split_of(before, "test"))
    project.write("a/annotations.json", [image_record(image)], [])
    raw, _ = project.ingest()
    left = split_of(raw, "test").annotations_of_image()[image["id"]]
    assert all(a["iscrowd"] or not a["num_keypoints"] for a in left)


def test_a_tools_own_order_of_keypoints_and_ids_are_translated(project):
    before, _ = project.ingest("before", corrections=None)
    image, annotations = image_with_persons(split_of(before, "test"))
    names = COCO_PERSON_CATEGORY["keypoints"]
    order = [names.index(name) for name in sorted(names)]
    persons = moved(annotations)
    shuffled = [
        p | {"category_id": 9, "keypoints": np.array(p["keypoints"]).reshape(-1, 3)[order].ravel().tolist()}
        for p in persons
    ]
    categories = [
        {"id": 9, "name": "person", "keypoints": sorted(names), "skeleton": []},
        {"id": 10, "name": "nose", "keypoints": [], "skeleton": []},
    ]
    project.write("a/annotations.json", [image_record(image)], shuffled, categories)
    raw, _ = project.ingest()
    new = split_of(raw, "test").annotations_of_image()[image["id"]]
    assert [a["keypoints"] for a in new if a["num_keypoints"] and not a["iscrowd"]] == [p["keypoints"] for p in persons]
    assert {a["category_id"] for a in new} == {1}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i, a, c: i.update(width=95), "expected 96x96 px"),
        (lambda i, a, c: a[0].update(keypoints=[1, 2, 2]), "without faults, got 1"),
        (lambda i, a, c: a[0].update(category_id=5), "without faults, got 1"),
        (lambda i, a, c: c[0].update(name="horse"), "expected the categories person, got 'horse'"),
        (lambda i, a, c: c[0].update(keypoints=["nose"], skeleton=[]), "expected the keypoints nose, left_eye"),
        (lambda i, a, c: i.update(file_name="unknown.jpg"), "not in the data"),
    ],
    ids=["resized", "keypoints", "category", "class", "schema", "unknown"],
)
def test_a_faulty_correction_stops_ingest_and_leaves_the_data(project, spoil, message):
    before, _ = project.ingest(corrections=None)
    known = fingerprint(before)
    image, annotations = image_with_persons(split_of(before, "test"))
    record, persons, category = image_record(image), moved(annotations), dict(COCO_PERSON_CATEGORY)
    spoil(record, persons, [category])
    project.write("a/annotations.json", [record], persons, [category])
    with pytest.raises(PosefoundryError, match=message):
        project.ingest()
    assert fingerprint(before) == known


def test_other_files_are_refused_by_name(project):
    (project.corrections / "notes.json").write_text('{"todo": 1}')
    with pytest.raises(PosefoundryError, match="Only corrections belong into"):
        project.ingest()
    with pytest.raises(PosefoundryError, match=r"ingest\.corrections: expected a folder"):
        project.ingest(corrections=project.root / "nowhere")


def test_a_round_of_what_hard_examples_wrote_alone_is_no_correction(project):
    project.write("1/ground_truth.json", [], [])
    with pytest.raises(PosefoundryError, match=r"1: expected corrections, found ground_truth.json alone.*another name"):
        project.ingest()
    project.write("1/corrected.json", [], [])
    project.ingest()


def test_sigmas_reach_the_annotations_and_the_dataset_yaml(project):
    from posefoundry.datasets.yolo import read_dataset_yaml

    sigmas = [round(0.03 + 0.001 * k, 3) for k in range(17)]
    raw, _ = project.ingest(sigmas=sigmas)
    assert split_of(raw, "test").skeleton.sigmas == tuple(sigmas)
    folder = project.root
    convert.run(Convert(), raw=raw, yolo=folder / "yolo", receipt=folder / "r.jsonl", report=folder / "c.json")
    assert read_dataset_yaml(folder / "yolo" / "dataset.yaml").skeleton.sigmas == tuple(sigmas)
    with pytest.raises(PosefoundryError, match=r"ingest\.sigmas: expected 17 numbers"):
        project.ingest(sigmas=sigmas[:3])


def test_tags_of_ones_own_stand_beside_corrections(project):
    before, _ = project.ingest("before", corrections=None)
    names = [image["file_name"] for image in split_of(before, "test").images]
    (project.root / "tags.csv").write_text(
        f"camera,file_name,site\nnorth,{names[0]},\nsouth,{names[1]},gate\nsouth,gone.jpg,gate\n", encoding="utf-8-sig"
    )
    image, annotations = image_with_persons(split_of(before, "test"))
    project.write("a/annotations.json", [image_record(image)], moved(annotations))
    raw, report = project.ingest(tags=project.root / "tags.csv")
    lines = (raw / "tags.csv").read_text().splitlines()
    corrected = {name: "yes" if name == image["file_name"] else "no" for name in names}
    assert lines[:4] == [
        "file_name,camera,site,corrected",
        f"{names[0]},north,,{corrected[names[0]]}",
        f"{names[1]},south,gate,{corrected[names[1]]}",
        f"{names[2]},,,{corrected[names[2]]}",
    ]
    assert report["tags"] == {"images": 2, "unknown_images": 1, "first": ["gone.jpg"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("camera\nnorth\n", "expected one column file_name"),
        ("file_name,a,a\nx,1,2\n", "distinct names"),
        ("file_name,corrected\nx,yes\n", "ingest's own"),
        ("file_name,size\nx,big\n", "slices by 'size' already"),
        ("file_name,a\nx,y&z\n", "without '=' and '&'"),
        ("file_name,a\nx\n", "line 2: expected 2 cells, got 1"),
        ("file_name,a\nx,1\nx,2\n", "stands there twice"),
        (None, "expected a CSV file, found none"),
    ],
)
def test_tags_that_cannot_be_meant_are_refused(project, content, message):
    path = project.root / "tags.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PosefoundryError, match=message):
        project.ingest(tags=path)
