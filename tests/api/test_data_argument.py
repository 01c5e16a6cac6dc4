"""What `data=` may name, and the ground truth that comes of it."""

import json
import shutil

import pytest
import yaml

from posefoundry.api.data import open_data, shipped_names
from posefoundry.datasets.coco import load_coco_keypoints
from posefoundry.datasets.truth import coco_from_labels
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.errors import PosefoundryError


def test_shipped_names_say_where_their_data_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POSEFOUNDRY_DATASETS", raising=False)
    assert {"coco-pose.yaml", "coco8-pose.yaml"} <= set(shipped_names())
    for name in shipped_names():
        with pytest.raises(PosefoundryError) as caught:
            open_data(name)
        where = tmp_path / "datasets" / name.removesuffix(".yaml")
        assert str(caught.value).startswith(f"{name}: expected its data in {where}, found nothing there.")
        assert "https://" in str(caught.value) and "POSEFOUNDRY_DATASETS" in str(caught.value)


def test_shipped_name_with_its_data(tiny_people, tmp_path, monkeypatch):
    (tmp_path / "coco8-pose").symlink_to(tiny_people)
    monkeypatch.setenv("POSEFOUNDRY_DATASETS", str(tmp_path))
    data = open_data("coco8-pose.yaml")
    assert data.name == "coco8-pose.yaml" and data.spec.root == tmp_path / "coco8-pose"


def test_a_file_of_ones_own_goes_before_a_shipped_one(workplace):
    shutil.copy("your-dataset.yaml", "coco8-pose.yaml")
    assert open_data("coco8-pose.yaml").name == str(workplace / "coco8-pose.yaml")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.yaml", "expected a dataset.yaml at"),
        ("people.csv", "expected a dataset.yaml or a COCO .json file, got 'people.csv'"),
        ("nowhere.json", "expected a COCO file at"),
    ],
)
def test_refusals(name, told):
    with pytest.raises(PosefoundryError, match=told):
        open_data(name)


def test_truth_from_labels_by_hand(tmp_path):
    """Image 200 x 100 px; box of 0.2 x 0.5 around the middle: 80, 25, 40, 50 px; area 0.53 x 2000 px."""
    from PIL import Image

    for kind in ("images", "labels"):
        (tmp_path / kind / "val").mkdir(parents=True)
    Image.new("RGB", (200, 100)).save(tmp_path / "images" / "val" / "a.png")
    Image.new("RGB", (200, 100)).save(tmp_path / "images" / "val" / "b.png")
    (tmp_path / "labels" / "val" / "a.txt").write_text("1 0.5 0.5 0.2 0.5  0.5 0.25 2  0 0 0  0.6 0.5 1\n")
    content = {"train": "images/val", "val": "images/val", "kpt_shape": [3, 3], "flip_idx": [0, 2, 1],
               "names": ["cat", "dog"], "sigmas": [0.1, 0.2, 0.3]}  # fmt: skip
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(content))
    truth = coco_from_labels(read_dataset_yaml(tmp_path / "d.yaml"), "val")
    assert [(image["id"], image["file_name"], image["width"], image["height"]) for image in truth.images] == [
        (1, "a.png", 200, 100),
        (2, "b.png", 200, 100),
    ]
    [dog] = truth.annotations
    assert dog["bbox"] == pytest.approx([80, 25, 40, 50])
    assert dog["area"] == pytest.approx(0.53 * 40 * 50)
    assert dog["keypoints"] == pytest.approx([100, 25, 2, 0, 0, 0, 120, 50, 1])
    assert (dog["category_id"], dog["num_keypoints"], dog["image_id"]) == (2, 2, 1)
    assert truth.skeleton.sigmas == (0.1, 0.2, 0.3)


def test_truth_of_a_list_of_images(tiny_people, tmp_path):
    images = sorted((tiny_people / "images" / "val").iterdir())[:2]
    (tmp_path / "val.txt").write_text("".join(f"{path}\n" for path in images))
    text = (tiny_people / "dataset.yaml").read_text().replace("path: .", f"path: {tiny_people}")
    (tmp_path / "d.yaml").write_text(text.replace("val: images/val", f"val: {tmp_path / 'val.txt'}"))
    truth = coco_from_labels(read_dataset_yaml(tmp_path / "d.yaml"), "val")
    assert [image["file_name"] for image in truth.images] == [str(path) for path in images]
    assert len(truth.annotations) == 2


def test_a_split_is_a_word_of_a_coco_file_s_name(tiny_coco, tmp_path):
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    for split in ("train", "val"):
        shutil.copytree(tiny_coco / f"images/{split}2017", tmp_path / "images", dirs_exist_ok=True)
    for name, split in (("evaluation_train", "train"), ("evaluation_val", "val"), ("interval", "val")):
        shutil.copy(tiny_coco / f"annotations/person_keypoints_{split}2017.json", annotations / f"{name}.json")
    named = open_data(annotations / "evaluation_val.json")
    assert named.named_split == "val"
    assert {split: file.annotations.name for split, file in named.coco.items()} == {
        "train": "evaluation_train.json",
        "val": "evaluation_val.json",
    }
    assert open_data(annotations / "interval.json").named_split is None


def test_coco_file_brings_its_siblings_and_is_the_truth_itself(tiny_coco, tmp_path):
    given = tiny_coco / "annotations" / "person_keypoints_train2017.json"
    data = open_data(given)
    assert set(data.coco) == {"train", "val"} and data.named_split == "train"
    assert data.coco["val"].images == tiny_coco / "images" / "val2017"
    truth = data.truth("val", tmp_path)
    assert truth.annotations == tiny_coco / "annotations" / "person_keypoints_val2017.json"
    assert truth.area_rule.startswith("ground truth: area of the annotation")
    with pytest.raises(PosefoundryError, match="expected a COCO file for the split 'test'"):
        data.truth("test", tmp_path)


def test_coco_file_for_training_becomes_labels_and_links(tiny_coco, tiny_people, tmp_path):
    dataset_yaml, val = open_data(tiny_coco / "annotations" / "person_keypoints_val2017.json").for_training(tmp_path)
    spec = read_dataset_yaml(dataset_yaml)
    assert (spec.splits["train"] / "00.png").is_symlink()
    ours = (tmp_path / "yolo" / "labels" / "train" / "00.txt").read_text()
    theirs = (tiny_people / "labels" / "train" / "00.txt").read_text()
    assert [float(v) for v in ours.split()] == pytest.approx([float(v) for v in theirs.split()], abs=2e-6)
    assert load_coco_keypoints(val).images[0]["file_name"] == str(tiny_coco / "images" / "val2017" / "00.png")


def test_coco_file_without_its_images(tiny_coco, tmp_path):
    path = tmp_path / "person_keypoints_val2017.json"
    shutil.copy(tiny_coco / "annotations" / path.name, path)
    with pytest.raises(PosefoundryError, match=r"expected its images, such as 00\.png, in one of .*found none there"):
        open_data(path)


def test_dataset_yaml_may_name_coco_files(tiny_coco, tiny_people, tmp_path):
    content = yaml.safe_load((tiny_people / "dataset.yaml").read_text()) | {
        "path": str(tiny_people),
        "annotations": {"val": str(tiny_coco / "annotations" / "person_keypoints_val2017.json")},
    }
    path = tmp_path / "d.yaml"
    path.write_text(yaml.safe_dump(content))
    assert open_data(path).truth("val", tmp_path).area_rule.startswith("ground truth: area of the annotation")
    assert open_data(path).truth("train", tmp_path).area_rule.startswith("ground truth: 0.53 x area of the box")
    path.write_text(yaml.safe_dump(content | {"annotations": {"val": "nowhere.json"}}))
    with pytest.raises(PosefoundryError, match=r"annotations\.val: expected a COCO annotation file at .*nowhere\.json"):
        open_data(path)
    path.write_text(yaml.safe_dump(content | {"annotations": {"vall": "x"}}))
    with pytest.raises(PosefoundryError, match="annotations: expected a COCO annotation file for each split"):
        open_data(path)


def test_written_truth_is_readable_json(tiny_people, tmp_path):
    truth = open_data(tiny_people / "dataset.yaml").truth("val", tmp_path)
    made = coco_from_labels(read_dataset_yaml(tiny_people / "dataset.yaml"), "val")
    assert json.loads(truth.annotations.read_text())["annotations"] == made.annotations != []
