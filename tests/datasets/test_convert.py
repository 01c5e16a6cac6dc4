import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from posefoundry.config import Convert
from posefoundry.datasets.coco import load_coco_keypoints
from posefoundry.datasets.convert import Person, convert_dataset, person_of
from posefoundry.datasets.receipt import ReceiptLine, check_complete, read_receipt, summarise, write_receipt
from posefoundry.datasets.yolo import format_label_line, read_dataset_yaml, read_labels
from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json, write_json_atomic
from posefoundry.stages import convert as convert_stage

Annotation = Callable[..., dict[str, Any]]
WriteRaw = Callable[..., Path]
COCO_REAL = Path(__file__).parents[2] / ".." / "shared" / "coco-real"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def only_line(receipt: list[ReceiptLine], annotation_id: int = 1) -> ReceiptLine:
    (line,) = [line for line in receipt if line.split == "train" and line.annotation_id == annotation_id]
    return line


@st.composite
def persons_in_image(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, int]]:
    """A person wholly inside an image."""
    size_wh = draw(st.integers(2, 4000)), draw(st.integers(2, 4000))
    x, y = (draw(st.floats(0, side - 1)) for side in size_wh)
    w, h = (draw(st.floats(1, side - low)) for side, low in zip(size_wh, (x, y), strict=True))
    keypoints: list[float] = []
    for _ in range(draw(st.integers(1, 5))):
        v = draw(st.sampled_from([0, 1, 2]))
        keypoints += [draw(st.floats(0, size_wh[0])), draw(st.floats(0, size_wh[1])), v] if v else [0, 0, 0]
    assume(any(keypoints[2::3]))
    return {"bbox": [x, y, w, h], "keypoints": keypoints, "area": w * h, "iscrowd": 0}, size_wh


@given(persons_in_image())
def test_pixels_come_back_from_the_label_file(case: tuple[dict[str, Any], tuple[int, int]]) -> None:
    annotation, (width, height) = case
    person = person_of(annotation, (width, height), min_box_side_px=1e-3)
    assert isinstance(person, Person) and person.clipped is None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_text(format_label_line(0, person.box_cxcywhn, person.keypoints_xyvn) + "\n")
        labels = read_labels(path, (len(annotation["keypoints"]) // 3, 3), n_classes=1)
    cx, cy, w, h = labels.boxes_cxcywhn[0].astype(np.float64) * [width, height, width, height]
    # Six decimals and float32 resolve 1e-6 of the image's side.
    np.testing.assert_allclose([cx - w / 2, cy - h / 2, w, h], annotation["bbox"], atol=1e-6 * max(width, height))
    keypoints_xyv = labels.keypoints_xyvn[0].astype(np.float64) * [width, height, 1]
    np.testing.assert_allclose(keypoints_xyv.ravel(), annotation["keypoints"], atol=1e-6 * max(width, height))


def test_label_by_hand(tmp_path: Path, annotation: Annotation, write_raw: WriteRaw) -> None:
    # Image 100 x 80; box 10..50 x 20..70: centre (30, 45); nose (30, 30), left ear (35.5, 28) hidden.
    receipt = convert_dataset(write_raw(tmp_path / "raw"), tmp_path / "yolo")
    assert (tmp_path / "yolo" / "labels" / "train" / "person.txt").read_text() == (
        "0 0.300000 0.562500 0.400000 0.625000 0.300000 0.375000 2 0.355000 0.350000 1 0.000000 0.000000 0\n"
    )
    assert (tmp_path / "yolo" / "labels" / "train" / "empty.txt").read_bytes() == b""
    assert receipt[0] == ReceiptLine(
        split="train", image="person.png", annotation_id=1, outcome="written", reason=None, line=1
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iscrowd": 1}, "crowd"),
        ({"keypoints": [0] * 9, "num_keypoints": 0}, "no_keypoints"),
        ({"keypoints": [101, 30, 2, 30, -1, 2, 0, 0, 0]}, "no_keypoints"),
        ({"bbox": [10, 20, 0, 50]}, "zero_area"),
        ({"bbox": [10, 20, 40, -5]}, "zero_area"),
        ({"area": 0}, "zero_area"),
        ({"bbox": [100, 20, 40, 50]}, "box_outside_image"),
        ({"bbox": [10, -60, 40, 50]}, "box_outside_image"),
        ({"bbox": [10, 20, 0.9, 50]}, "too_small"),
        ({"bbox": [99.5, 20, 40, 50]}, "too_small"),
    ],
)
def test_left_out(
    tmp_path: Path, annotation: Annotation, write_raw: WriteRaw, changes: dict[str, Any], reason: str
) -> None:
    raw = write_raw(tmp_path / "raw", [annotation(1, **changes), annotation(2)])
    receipt = convert_dataset(raw, tmp_path / "yolo", min_box_side_px=1.0)
    assert only_line(receipt, 1) == ReceiptLine(
        split="train", image="person.png", annotation_id=1, outcome="left_out", reason=reason, line=None
    )
    assert only_line(receipt, 2).line == 1
    assert len((tmp_path / "yolo" / "labels" / "train" / "person.txt").read_text().splitlines()) == 1


def test_smallest_box_side_is_a_setting(annotation: Annotation) -> None:
    narrow = annotation(bbox=[10, 20, 3, 50])
    assert isinstance(person_of(narrow, (100, 80), min_box_side_px=3), Person)
    assert person_of(narrow, (100, 80), min_box_side_px=3.5) == "too_small"


def test_duplicates_are_the_same_box_and_keypoints_in_one_image(
    tmp_path: Path, annotation: Annotation, write_raw: WriteRaw
) -> None:
    train = [
        annotation(1),
        annotation(2, area=800.0),
        annotation(3, bbox=[10, 20, 40, 51]),
        annotation(4, keypoints=[30, 30, 1, 35.5, 28, 1, 0, 0, 0]),
        annotation(5, image_id=2),
    ]
    receipt = convert_dataset(write_raw(tmp_path / "raw", train), tmp_path / "yolo")
    assert [(only_line(receipt, i).reason, only_line(receipt, i).line) for i in (1, 2, 3, 4)] == [
        (None, 1),
        ("duplicate", None),
        (None, 2),
        (None, 3),
    ]
    assert only_line(receipt, 5).line == 1


@pytest.mark.parametrize(
    ("changes", "clipped", "box_xyxy", "visibilities"),
    [
        ({"bbox": [-10, 20, 40, 100]}, "box", [0, 20, 30, 80], [2, 1, 0]),
        ({"keypoints": [30, 30, 2, 35, -0.5, 1, 0, 0, 0]}, "keypoints", [10, 20, 50, 70], [2, 0, 0]),
        ({"bbox": [60, 20, 41, 50], "keypoints": [99, 30, 2, 100.5, 28, 2, 99, 81, 1]}, "box and keypoints",
         [60, 20, 100, 70], [2, 0, 0]),
        ({"keypoints": [100, 80, 2, 0, 0, 1, 500, 500, 0]}, None, [10, 20, 50, 70], [2, 1, 0]),
        ({"bbox": [60, 20, 40.004, 50]}, None, [60, 20, 100, 70], [2, 1, 0]),
    ],
    ids=["box", "keypoints", "both", "border and unlabelled", "rounding"],
)  # fmt: skip
def test_clipped_to_the_image(
    annotation: Annotation, changes: dict[str, Any], clipped: str | None, box_xyxy: list[int], visibilities: list[int]
) -> None:
    person = person_of(annotation(**changes), (100, 80), min_box_side_px=1)
    assert isinstance(person, Person)
    assert person.clipped == clipped
    cx, cy, w, h = person.box_cxcywhn * [100, 80, 100, 80]
    np.testing.assert_allclose([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], box_xyxy)
    assert person.keypoints_xyvn[:, 2].tolist() == visibilities
    assert not person.keypoints_xyvn[person.keypoints_xyvn[:, 2] == 0].any()


def test_clipped_stands_in_the_receipt(tmp_path: Path, annotation: Annotation, write_raw: WriteRaw) -> None:
    receipt = convert_dataset(write_raw(tmp_path / "raw", [annotation(bbox=[-10, 20, 40, 50])]), tmp_path / "yolo")
    assert (only_line(receipt).outcome, only_line(receipt).reason, only_line(receipt).line) == ("clipped", "box", 1)


def test_set_aside_annotations_are_accounted_for(tmp_path: Path, annotation: Annotation, write_raw: WriteRaw) -> None:
    image = {"id": 9, "file_name": "broken.jpg"}
    set_aside = [
        {"split": "train", "reason": "image_truncated", "annotation": None, "image": image, "detail": ""},
        {"split": "train", "reason": "image_truncated", "annotation": annotation(7), "image": image, "detail": ""},
        {"split": "val", "reason": "unknown_image", "annotation": annotation(8), "image": None, "detail": ""},
    ]
    receipt = convert_dataset(write_raw(tmp_path / "raw", set_aside=set_aside), tmp_path / "yolo")
    assert [(line.split, line.annotation_id, line.image, line.reason) for line in receipt[-2:]] == [
        ("train", 7, "broken.jpg", "set_aside:image_truncated"),
        ("val", 8, None, "set_aside:unknown_image"),
    ]
    assert summarise(receipt)["annotations"] == 5


NUMBER = st.one_of(st.integers(-20, 130), st.floats(-20, 130, width=32), st.sampled_from([0, 100, 80]))
RANDOM_ANNOTATION = st.fixed_dictionaries(
    {
        "image_id": st.sampled_from([1, 2]),
        "category_id": st.just(1),
        "bbox": st.lists(NUMBER, min_size=4, max_size=4),
        "keypoints": st.lists(st.tuples(NUMBER, NUMBER, st.integers(0, 2)), min_size=3, max_size=3).map(
            lambda keypoints: [number for keypoint in keypoints for number in keypoint]
        ),
        "area": st.sampled_from([0, 1.5, 900]),
        "iscrowd": st.sampled_from([0, 0, 0, 1]),
    }
)


@settings(max_examples=40, deadline=None)
@given(train=st.lists(RANDOM_ANNOTATION, max_size=8), twice=st.booleans())
def test_receipt_accounts_for_any_annotations(train: list[dict[str, Any]], twice: bool, write_raw: WriteRaw) -> None:
    train = train * 2 if twice else train
    train = [annotation | {"id": number} for number, annotation in enumerate(train)]
    with tempfile.TemporaryDirectory() as folder:
        raw, yolo = write_raw(Path(folder) / "raw", train), Path(folder) / "yolo"
        receipt = convert_dataset(raw, yolo)
        summary = summarise(line for line in receipt if line.split == "train")
        assert summary["annotations"] == len(train)
        assert summary["written"] + summary["clipped"] + summary["left_out"] == len(train)
        assert sum(summary["clipped_because"].values()) == summary["clipped"]
        assert sum(summary["left_out_because"].values()) == summary["left_out"]
        for image in ("person.png", "empty.png"):
            path = yolo / "labels" / "train" / f"{Path(image).stem}.txt"
            n_labels = len(read_labels(path, (3, 3), n_classes=1).class_ids)
            lines = [line.line for line in receipt if (line.split, line.image) == ("train", image) and line.line]
            assert lines == list(range(1, n_labels + 1))


def test_receipt_that_misses_one_is_refused(annotation: Annotation) -> None:
    line = ReceiptLine(split="train", image="a.png", annotation_id=1, outcome="written", reason=None, line=1)
    check_complete([line], [("train", 1)])
    with pytest.raises(
        PosefoundryError, match=r"each of 2 annotations once, but 1 are missing \(first: .*'train', '2'"
    ):
        check_complete([line], [("train", 1), ("train", 2)])
    with pytest.raises(PosefoundryError, match="1 are too many"):
        check_complete([line, line], [("train", 1)])


def test_receipt_is_read_as_written(tmp_path: Path) -> None:
    lines = [
        ReceiptLine(split="train", image="ä b.png", annotation_id=1, outcome="written", reason=None, line=1),
        ReceiptLine(split="val", image=None, annotation_id="x", outcome="left_out", reason="set_aside:y", line=None),
    ]
    write_receipt(tmp_path / "receipt.jsonl", lines)
    assert read_receipt(tmp_path / "receipt.jsonl") == lines


@pytest.mark.parametrize("text", ["{", "[]", '{"split": "train"}', "7"])
def test_malformed_receipt_is_named(tmp_path: Path, text: str) -> None:
    line = ReceiptLine(split="train", image="a", annotation_id=1, outcome="written", reason=None, line=1)
    write_receipt(tmp_path / "receipt.jsonl", [line])
    with (tmp_path / "receipt.jsonl").open("a") as stream:
        stream.write(text + "\n")
    with pytest.raises(PosefoundryError, match=r"receipt\.jsonl, line 2: expected a line of a conversion receipt"):
        read_receipt(tmp_path / "receipt.jsonl")


def test_twice_gives_the_same_bytes(tmp_path: Path, annotation: Annotation, write_raw: WriteRaw) -> None:
    raw = write_raw(tmp_path / "raw", [annotation(1), annotation(2, bbox=[-3, 0, 50, 60.3])])
    source = contents(raw)
    for name in ("once", "again"):
        convert_stage.run(
            Convert(),
            raw=raw,
            yolo=tmp_path / "yolo",
            receipt=tmp_path / "receipt.jsonl",
            report=tmp_path / "report.json",
        )
        written = contents(tmp_path / "yolo") | {
            "receipt": (tmp_path / "receipt.jsonl").read_bytes(),
            "report": (tmp_path / "report.json").read_bytes(),
        }
        if name == "once":
            first = written
    assert written == first
    assert contents(raw) == source


def test_report_counts_by_split(tmp_path: Path, annotation: Annotation, write_raw: WriteRaw) -> None:
    raw = write_raw(tmp_path / "raw", [annotation(1), annotation(2, iscrowd=1), annotation(3, bbox=[-9, 20, 40, 50])])
    paths = {"yolo": tmp_path / "yolo", "receipt": tmp_path / "receipt.jsonl", "report": tmp_path / "report.json"}
    convert_stage.run(Convert(), raw=raw, **paths)
    report = read_json(paths["report"])
    assert report["train"] == {
        "annotations": 3,
        "written": 1,
        "clipped": 1,
        "left_out": 1,
        "clipped_because": {"box": 1},
        "left_out_because": {"crowd": 1},
    }
    assert report["all"]["annotations"] == 5 and report["val"]["written"] == 1
    assert len(read_receipt(paths["receipt"])) == 5


def test_images_are_linked_or_copied(tmp_path: Path, write_raw: WriteRaw) -> None:
    raw = write_raw(tmp_path / "raw")
    source = raw / "images" / "train" / "person.png"
    for how in ("hardlink", "symlink", "copy"):
        convert_dataset(raw, tmp_path / how, images=how)
        image = tmp_path / how / "images" / "train" / "person.png"
        assert image.read_bytes() == source.read_bytes()
        assert image.is_symlink() == (how == "symlink")
        assert (not image.is_symlink() and image.samefile(source)) == (how == "hardlink")


def test_symlinks_hold_when_the_project_moves(tmp_path: Path, write_raw: WriteRaw) -> None:
    convert_dataset(write_raw(tmp_path / "here" / "raw"), tmp_path / "here" / "yolo", images="symlink")
    (tmp_path / "here").rename(tmp_path / "there")
    assert (tmp_path / "there" / "yolo" / "images" / "val" / "person.png").read_bytes()


def test_a_disk_that_cannot_link_gets_copies(
    tmp_path: Path, write_raw: WriteRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    raw = write_raw(tmp_path / "raw")
    convert_dataset(raw, tmp_path / "yolo", images="hardlink")
    copy, source = (folder / "images" / "train" / "person.png" for folder in (tmp_path / "yolo", raw))
    assert copy.read_bytes() == source.read_bytes() and not copy.samefile(source)


def test_class_index_is_the_place_among_the_category_ids(
    tmp_path: Path, annotation: Annotation, write_raw: WriteRaw
) -> None:
    schema = {"keypoints": ["nose", "left_ear", "right_ear"], "skeleton": [[1, 2]]}
    categories = [{"id": 9, "name": "dog"} | schema, {"id": 4, "name": "cat"} | schema, {"id": 1, "name": "p"} | schema]
    train = [annotation(1, category_id=9), annotation(2, category_id=4)]
    convert_dataset(write_raw(tmp_path / "raw", train, categories=categories), tmp_path / "yolo")
    labels = read_labels(tmp_path / "yolo" / "labels" / "train" / "person.txt", (3, 3), n_classes=3)
    spec = read_dataset_yaml(tmp_path / "yolo" / "dataset.yaml")
    assert labels.class_ids.tolist() == [2, 1]
    assert spec.class_names == ("p", "cat", "dog") and spec.category_ids == (1, 4, 9)
    assert spec.skeleton.flip_indices == (0, 2, 1) and spec.skeleton.edges == ((0, 1),)


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    write_json_atomic(path, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda val: val["categories"][0].update(name="dog"), r"val\.json: expected the categories of train\.json"),
        (lambda val: val["annotations"][0].update(image_id=5), r"val\.json: .* the id 1: no image has the id 5"),
        (lambda val: val["annotations"][0].update(keypoints=[1]), r"val\.json: .* the id 1: expected 3 keypoints"),
        (lambda val: val["images"][0].update(width=0), r"val\.json: .* the id 1: expected width and height"),
        (
            lambda val: val["images"][1].update(file_name="person.jpg"),
            r"person\.png.*person\.jpg.*share the label file",
        ),
        (lambda val: val["images"][1].update(file_name="gone.png"), r"val/gone\.png: the annotations name this image"),
        (lambda val: val.pop("images"), r"val\.json: expected a list 'images'"),
    ],
)
def test_faulty_raw_data_stops_and_leaves_the_old_labels(
    tmp_path: Path, write_raw: WriteRaw, change: Callable[[Any], None], message: str
) -> None:
    raw = write_raw(tmp_path / "raw")
    convert_dataset(raw, tmp_path / "yolo")
    before = contents(tmp_path / "yolo")
    change_json(raw / "annotations" / "val.json", change)
    with pytest.raises(PosefoundryError, match=message):
        convert_dataset(raw, tmp_path / "yolo")
    assert contents(tmp_path / "yolo") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw", "yolo"]


@pytest.mark.skipif(not COCO_REAL.exists(), reason="../shared/coco-real is absent")
def test_real_coco_annotations(tmp_path: Path) -> None:
    """README of that folder: 508 val annotations, 269 persons with keypoints; its crowds are 11."""
    source = load_coco_keypoints(COCO_REAL / "annotations" / "person_keypoints_val2017.json")
    sizes = {image["id"]: (image["width"], image["height"]) for image in source.images}
    persons = [person_of(a, sizes[a["image_id"]], min_box_side_px=1.0) for a in source.annotations]
    reasons = Counter(person for person in persons if isinstance(person, str))
    assert len(persons) - reasons.total() == 269
    assert reasons == {"crowd": 11, "no_keypoints": 228}
