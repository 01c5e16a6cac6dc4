"""The ingest stage: what comes in, what is set aside, what the manifest says, what an accident leaves behind."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from folders import fingerprint

from posefoundry.config import CocoSource, Convert, Ingest, SyntheticSource, Validate
from posefoundry.datasets import sources
from posefoundry.datasets.coco import load_coco_keypoints
from posefoundry.datasets.image_files import is_truncated
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.errors import PosefoundryError
from posefoundry.skeleton import COCO_PERSON_CATEGORY
from posefoundry.stages import convert, ingest, validate

WIDTH_PX, HEIGHT_PX = 64, 48
COCO_REAL = Path(__file__).parents[3] / "shared" / "coco-real"


def encoded(seed, suffix=".jpg", channels=3):
    picture = np.random.default_rng(seed).integers(0, 255, (HEIGHT_PX, WIDTH_PX, channels), np.uint8)
    return cv2.imencode(suffix, picture.squeeze())[1].tobytes()


class Source:
    """A COCO folder of noise images with one person each, that a test spoils before it is ingested."""

    def __init__(self, root, n_train=10, n_val=2):
        self.root = root
        self.content = {}
        for split, count in (("train", n_train), ("val", n_val)):
            self.add_split(split, count)

    def add_split(self, split, count):
        self.folder(split).mkdir(parents=True)
        self.content[split] = {"images": [], "annotations": [], "categories": [COCO_PERSON_CATEGORY]}
        for number in range(count):
            self.add_image(split, number + 1, f"{number:03d}.jpg", encoded(sum(map(ord, split)) + number))

    def add_image(self, split, image_id, file_name, content):
        (self.folder(split) / file_name).parent.mkdir(exist_ok=True)
        (self.folder(split) / file_name).write_bytes(content)
        record = {"id": image_id, "file_name": file_name, "width": WIDTH_PX, "height": HEIGHT_PX, "license": 3}
        self.content[split]["images"].append(record)
        person = {
            "id": 100 + image_id, "image_id": image_id, "category_id": 1, "bbox": [5.5, 6, 30, 40], "area": 600.5,
            "iscrowd": 0, "keypoints": [10, 20, 2] * 17, "num_keypoints": 17, "segmentation": [[1.5, 2, 3, 4, 5, 6]],
        }  # fmt: skip
        self.content[split]["annotations"].append(person)

    def folder(self, split):
        return self.root / f"{split}2017"

    def annotations_path(self, split):
        return self.root / "annotations" / f"person_keypoints_{split}2017.json"

    def ingest(self, tmp_path, **settings):
        for split, content in self.content.items():
            self.annotations_path(split).parent.mkdir(exist_ok=True)
            self.annotations_path(split).write_text(json.dumps(content))
        coco = CocoSource(root=self.root, **settings.pop("coco", {}))
        raw, report = tmp_path / "data" / "raw", tmp_path / "report.json"
        ingest.run(Ingest(source="coco", coco=coco, **settings), raw=raw, report=report)
        return raw, json.loads(report.read_text())


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path / "source")


def set_aside_of(raw):
    return json.loads((raw / "set_aside.json").read_text())


def test_a_sound_source_arrives_whole_and_stays_unchanged(source, tmp_path):
    source.ingest(tmp_path / "first")
    before = fingerprint(source.root)
    raw, report = source.ingest(tmp_path)
    assert fingerprint(source.root) == before
    assert set_aside_of(raw) == []
    splits = {split: load_coco_keypoints(raw / "annotations" / f"{split}.json") for split in ("train", "val", "test")}
    originals = {image["id"]: image for image in source.content["train"]["images"]}
    for split, content in splits.items():
        assert {image["file_name"] for image in content.images} == {p.name for p in (raw / "images" / split).iterdir()}
        assert {a["image_id"] for a in content.annotations} == {image["id"] for image in content.images}
        for path in (raw / "images" / split).iterdir():
            assert path.read_bytes() == before[f"{'val' if split == 'val' else 'train'}2017/{path.name}"]
    cut = splits["train"].images + splits["test"].images
    assert {image["id"]: image for image in cut} == originals
    assert splits["val"].annotations == source.content["val"]["annotations"]
    assert {split: report["splits"][split]["images"] for split in splits} == {"train": 8, "val": 2, "test": 2}
    assert report["splits"]["val"] == {
        "images": 2, "annotations": 2, "persons": 2, "persons_with_keypoints": 2, "crowds": 0,
    }  # fmt: skip


def test_the_manifest_fingerprints_every_file(source, tmp_path):
    raw, _ = source.ingest(tmp_path)
    manifest = json.loads((raw / "manifest.json").read_text())
    expected = [
        {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for path, content in sorted(fingerprint(raw).items())
        if path != "manifest.json"
    ]
    assert manifest["files"] == expected
    assert manifest["source"]["kind"] == "coco"
    digest = hashlib.sha256(source.annotations_path("val").read_bytes()).hexdigest()
    assert manifest["source"]["annotations"]["val"]["sha256"] == digest


def test_the_test_cut_follows_the_seed_and_survives_growth(tmp_path):
    def test_names(folder, n_train, seed=7):
        raw, _ = Source(folder / "source", n_train).ingest(folder, seed=seed, coco={"test_fraction": 0.3})
        return {path.name for path in (raw / "images" / "test").iterdir()}

    first = test_names(tmp_path / "a", 40)
    assert len(first) == 12
    assert test_names(tmp_path / "b", 40) == first
    assert test_names(tmp_path / "c", 40, seed=8) != first
    grown = test_names(tmp_path / "d", 50)
    assert len(grown) == 15
    assert len(first & grown) >= 9


def test_a_test_split_of_the_source_is_taken_as_it_is(source, tmp_path):
    source.add_split("test", 3)
    raw, report = source.ingest(tmp_path)
    assert report["splits"]["train"]["images"] == 10
    assert {path.name for path in (raw / "images" / "test").iterdir()} == {"000.jpg", "001.jpg", "002.jpg"}


def spoil(source, kind):
    """Spoils the first train image in the way that is named; its annotation has the id 101."""
    record = source.content["train"]["images"][0]
    path = source.folder("train") / record["file_name"]
    content = path.read_bytes()
    if kind == "image_missing":
        path.unlink()
    elif kind == "image_unreadable":
        path.unlink()
        path.mkdir()
    elif kind == "image_truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "image_undecodable":
        path.write_text("<html>404 Not Found</html>")
    elif kind == "image_size_mismatch":
        record["width"] += 1
    elif kind == "unsafe_file_name":
        (source.root / "outside.jpg").write_bytes(content)
        record["file_name"] = "../outside.jpg"


@pytest.mark.parametrize(
    "kind",
    [
        "image_missing", "image_unreadable", "image_truncated", "image_undecodable", "image_size_mismatch",
        "unsafe_file_name",
    ],
)  # fmt: skip
def test_a_spoilt_image_is_set_aside_with_its_annotations(source, tmp_path, kind):
    spoil(source, kind)
    raw, report = source.ingest(tmp_path)
    aside = set_aside_of(raw)
    assert [(e["split"], e["reason"], e["annotation"] and e["annotation"]["id"]) for e in aside] == [
        ("train", kind, None),
        ("train", kind, 101),
    ]
    assert report["set_aside"]["images"] == {"total": 1, "by_reason": {kind: 1}}
    assert report["set_aside"]["annotations"] == {"total": 1, "by_reason": {kind: 1}}
    n_kept = sum(report["splits"][split]["annotations"] for split in ("train", "test"))
    assert n_kept + report["set_aside"]["annotations"]["total"] == 10
    assert not list(raw.rglob("outside.jpg"))
    assert not [path for path in raw.rglob("000.jpg") if path.parent.name != "val"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"keypoints": [math.nan] * 51}, "keypoints_not_finite"),
        ({"image_id": 999}, "unknown_image"),
        ({"id": 102}, "duplicate_annotation_id"),
    ],
)
def test_a_faulty_annotation_is_set_aside_and_its_image_kept(source, tmp_path, change, reason):
    faulty = source.content["train"]["annotations"][0] | {"id": 500} | change
    source.content["train"]["annotations"].append(faulty)
    raw, report = source.ingest(tmp_path)
    assert report["set_aside"]["annotations"]["by_reason"] == {reason: 1}
    assert report["set_aside"]["images"]["total"] == 0
    (entry,) = set_aside_of(raw)
    assert entry["reason"] == reason
    assert entry["annotation"]["bbox"] == faulty["bbox"]
    assert (entry["image"] is None) == (reason == "unknown_image")


def test_grey_png_and_nested_images_are_fine(source, tmp_path):
    source.add_image("val", 50, "grey.jpg", encoded(1, channels=1))
    source.add_image("val", 51, "alpha.png", encoded(2, ".png", channels=4))
    source.add_image("val", 52, "day/one.webp", encoded(3, ".webp"))
    raw, report = source.ingest(tmp_path)
    assert report["set_aside"]["images"]["total"] == 0
    assert (raw / "images/val/day__one.webp").read_bytes() == encoded(3, ".webp")
    names = [image["file_name"] for image in load_coco_keypoints(raw / "annotations/val.json").images]
    assert names[-3:] == ["grey.jpg", "alpha.png", "day__one.webp"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_every_cut_of_an_image_is_told_from_the_whole(suffix):
    content = encoded(4, suffix)
    assert not is_truncated(content)
    assert not is_truncated(content + b"trailing bytes")
    for length in range(16, len(content), 97):
        assert is_truncated(content[:length])
    assert is_truncated(content[:-1])


def test_the_end_of_a_thumbnail_is_not_the_end_of_a_jpeg():
    """EXIF data may hold a JPEG of its own, with an end-of-image marker that says nothing about the outer image."""
    thumbnail, whole = encoded(5), encoded(6)
    exif = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    with_thumbnail = whole[:2] + exif + whole[2:]
    assert not is_truncated(with_thumbnail)
    assert is_truncated(with_thumbnail[: len(exif) + len(whole) // 2])


def test_a_progressive_jpeg_is_whole_only_with_its_last_scan():
    picture = np.random.default_rng(0).integers(0, 255, (HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    assert not is_truncated(content)
    assert all(is_truncated(content[:length]) for length in range(16, len(content), 97))


def test_malformed_json_stops_with_a_message_and_leaves_the_old_data(source, tmp_path):
    raw, _ = source.ingest(tmp_path)
    before = fingerprint(raw)
    source.content["val"] = {}
    with pytest.raises(PosefoundryError, match="expected a list 'images'"):
        source.ingest(tmp_path)
    assert fingerprint(raw) == before
    assert list(raw.parent.iterdir()) == [raw]


def test_a_missing_folder_or_annotation_file_is_named(source, tmp_path):
    del source.content["val"]
    with pytest.raises(PosefoundryError, match=r"person_keypoints_val2017\.json: expected a JSON file"):
        source.ingest(tmp_path)
    source.root = tmp_path / "nowhere"
    source.content = {}
    with pytest.raises(PosefoundryError, match=r"ingest\.coco\.root: expected a folder"):
        source.ingest(tmp_path)


def test_a_split_that_loses_every_image_stops_ingest(source, tmp_path):
    for path in source.folder("val").iterdir():
        path.unlink()
    with pytest.raises(PosefoundryError, match=r"for the val split below .*does not exist"):
        source.ingest(tmp_path)
    assert not (tmp_path / "data" / "raw").exists()


def test_a_cut_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    with pytest.raises(PosefoundryError, match="test_fraction"):
        Source(tmp_path / "source", n_train=1).ingest(tmp_path)


def test_without_a_cut_all_images_are_learnt_and_the_pipeline_says_that_none_are_left_to_test_on(source, tmp_path):
    raw, report = source.ingest(tmp_path, coco={"test_fraction": 0})
    assert {split: counts["images"] for split, counts in report["splits"].items()} == {"train": 10, "val": 2, "test": 0}
    assert {path.name for path in (raw / "images" / "train").iterdir()} == {f"{n:03d}.jpg" for n in range(10)}
    yolo, receipt, reports = tmp_path / "yolo", tmp_path / "receipt.jsonl", tmp_path / "reports"
    convert.run(Convert(), raw=raw, yolo=yolo, receipt=receipt, report=tmp_path / "convert.json")
    assert len(read_dataset_yaml(yolo / "dataset.yaml").splits) == 3
    with pytest.raises(PosefoundryError, match=r"min_persons.*: test: persons 0\n"):
        validate.run(
            Validate(), raw=raw, yolo=yolo, receipt=receipt, report=reports / "report.json", docs=reports / "docs"
        )
    assert [
        check["name"]
        for check in json.loads((reports / "report.json").read_text())["checks"]
        if not check["passed"] and check["level"] == "error"
    ] == ["min_persons"]


def test_splits_with_other_categories_are_refused(source, tmp_path):
    source.content["val"]["categories"] = [COCO_PERSON_CATEGORY | {"id": 2}]
    for annotation in source.content["val"]["annotations"]:
        annotation["category_id"] = 2
    with pytest.raises(PosefoundryError, match="Export both from the same project"):
        source.ingest(tmp_path)


def small_synthetic(**changes):
    counts = {"image_size_px": 64, "train_images": 6, "val_images": 2, "test_images": 2} | changes
    return Ingest(source="synthetic", seed=1, synthetic=SyntheticSource(**counts))


def test_synthetic_people_arrive_in_the_same_form(tmp_path):
    for name in ("a", "b"):
        ingest.run(small_synthetic(), raw=tmp_path / name, report=tmp_path / f"{name}.json")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["source"] == {"kind": "synthetic", "seed": 1, **small_synthetic().synthetic.model_dump()}
    assert len(manifest["files"]) == 10 + 3 + 1 + 1
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["splits"]["train"]["images"] == 6
    assert report["set_aside"]["annotations"]["total"] == 0


def test_an_accident_midway_leaves_no_raw_data(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(sources, "CocoKeypoints", fail)
    with pytest.raises(OSError, match="disk full"):
        ingest.run(small_synthetic(), raw=tmp_path / "raw", report=tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_ingest_leaves_nothing_that_passes_for_whole(tmp_path):
    (tmp_path / "params.yaml").write_text("ingest: {synthetic: {train_images: 100000, image_size_px: 64}}")
    command = [sys.executable, "-m", "posefoundry.stages.ingest", "--raw", "data/raw", "--report", "report.json"]
    process = subprocess.Popen(command, cwd=tmp_path)
    partial = tmp_path / "data" / ".raw.partial" / "images" / "train"
    deadline = time.monotonic() + 60
    while not (partial.is_dir() and any(partial.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "data" / "raw").exists()
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in workers)
    (tmp_path / "params.yaml").write_text(
        "ingest: {synthetic: {train_images: 3, val_images: 1, test_images: 1, image_size_px: 64}}"
    )
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    assert len(list((tmp_path / "data" / "raw" / "images" / "train").iterdir())) == 3
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["raw"]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_command_ends_with_a_message_and_status_2(tmp_path):
    (tmp_path / "params.yaml").write_text("ingest: {source: coco, coco: {root: nowhere}}")
    command = [sys.executable, "-m", "posefoundry.stages.ingest", "--raw", "raw", "--report", "report.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("ingest: ingest.coco.root: expected a folder")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not COCO_REAL.is_dir(), reason="../shared/coco-real is absent")
def test_real_coco_images_all_arrive(tmp_path):
    settings = Ingest(source="coco", coco=CocoSource(root=COCO_REAL))
    ingest.run(settings, raw=tmp_path / "raw", report=tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    counts = report["splits"]
    # The counts of ../shared/coco-real/README.md.
    assert counts["train"]["images"] + counts["test"]["images"] == 288
    assert counts["val"]["images"] == 192
    assert counts["train"]["annotations"] + counts["test"]["annotations"] == 617
    assert counts["val"]["annotations"] == 508
    assert counts["train"]["persons_with_keypoints"] + counts["test"]["persons_with_keypoints"] == 335
    assert counts["val"]["persons_with_keypoints"] == 269
    assert report["set_aside"]["images"]["total"] == report["set_aside"]["annotations"]["total"] == 0
