"""From images on disk to metrics, passport and report, with a predictor that sees what the test tells it to."""

import csv
import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from posefoundry.config import Evaluate
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.ground_truth import AREA_RULES
from posefoundry.evaluation.judge import judge
from posefoundry.evaluation.passport import COMPARABLE_FIELDS, first_difference, sha256_of_files
from posefoundry.evaluation.report import write_report
from posefoundry.files import sha256_of_file
from posefoundry.inference.results import PoseResult
from posefoundry.models import ModelInfo
from posefoundry.skeleton import COCO_PERSON, Skeleton

SETTINGS = Evaluate(overlay_images=4)
ORIGIN = {"weights_sha256": "0" * 64, "runtime": "pytorch", "precision": "float32"}


class Clairvoyant:
    """Finds in each image the persons of the ground truth, moved sideways by a distance of its own."""

    image_size_px = 128

    def __init__(self, annotations_file: Path, shift_px: dict[str, float], skeleton: Skeleton = COCO_PERSON) -> None:
        content = json.loads(annotations_file.read_text())
        self.shift_px = shift_px
        self.names = {image["file_name"]: image["id"] for image in content["images"]}
        self.annotations = content["annotations"]
        info = ModelInfo(
            architecture="yolov8n-pose",
            class_names=("person",),
            category_ids=(1,),
            kpt_shape=(skeleton.n_keypoints, 3),
            skeleton=skeleton,
            stride_px=32,
            image_size_px=128,
        )
        self.backend = SimpleNamespace(info=info, device_name="crystal ball")

    def predict(self, images, *, batch_size, progress):
        results = []
        for path in images:
            shift = self.shift_px.get(path.name, 0.0)
            persons = [a for a in self.annotations if a["image_id"] == self.names[path.name] and not a["iscrowd"]]
            boxes = np.array([p["bbox"] for p in persons], np.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            keypoints = np.array([p["keypoints"] for p in persons], np.float32).reshape(-1, 17, 3)
            keypoints[..., 0] += shift
            keypoints[..., 2] = 1
            scores = np.linspace(0.9, 0.5, len(persons), dtype=np.float32)
            classes = np.zeros(len(persons), np.int64)
            results.append(PoseResult(boxes, scores, classes, keypoints, (120, 160), path, {}))
            progress(len(results), len(images))
        return results


@pytest.fixture
def split(tmp_path, person, coco):
    """Four images of 160 x 120 px: two persons, one and a crowd, one moved away, nobody."""
    people = [
        person(1, 1, 10, 10, 40, 90), person(2, 1, 90, 10, 40, 90), person(3, 2, 20, 10, 40, 90),
        person(4, 2, 80, 5, 75, 60) | {"iscrowd": 1}, person(5, 3, 60, 10, 40, 90),
    ]  # fmt: skip
    content = coco(people, 4)
    for image in content["images"]:
        image |= {"width": 160, "height": 120}
        pixels = np.random.default_rng(image["id"]).integers(0, 255, (120, 160, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / image["file_name"]), cv2.GaussianBlur(pixels, (15, 15), 6))
    (tmp_path / "test.json").write_text(json.dumps(content))
    return SimpleNamespace(annotations=tmp_path / "test.json", images=tmp_path / "images")


def judged(split, settings=SETTINGS, shift_px=None, origin=ORIGIN, **more):
    predictor = Clairvoyant(split.annotations, shift_px or {}, **more)
    return judge(predictor, split.annotations, split.images, settings, origin=origin, progress=lambda done, of: None)


def test_a_clairvoyant_scores_one_with_all_counts(split):
    metrics = judged(split).metrics
    assert metrics["oks_ap"] == pytest.approx(1.0)
    assert (metrics["images"], metrics["persons"], metrics["detections"]) == (4, 4, 4)


def test_the_passport_says_on_what_and_how(split):
    passport = judged(split).passport
    assert set(COMPARABLE_FIELDS) <= set(passport)
    assert passport["annotations_sha256"] == sha256_of_file(split.annotations)
    assert passport["sigmas"] == list(COCO_PERSON.sigmas)
    assert (passport["confidence"], passport["nms_iou"], passport["max_detections"]) == (0.001, 0.7, 300)
    assert (passport["model"], passport["input_size_px"], passport["device"]) == ("yolov8n-pose", 128, "crystal ball")
    assert passport["weights_sha256"] == "0" * 64
    assert {"torch", "pycocotools", "python", "posefoundry"} <= set(passport["versions"])
    assert "onnxruntime" not in passport["versions"], "it did not run this model"
    assert (passport["max_poses_per_image"], passport["max_boxes_per_image"]) == (20, 100)
    assert (passport["runtime"], passport["precision"]) == ("pytorch", "float32")
    assert passport["head"] == "several boxes a person, thinned out by NMS"
    assert passport["area_rule"] == AREA_RULES["annotation"]


def test_numbers_of_other_settings_images_or_annotations_do_not_compare(split):
    before = judged(split).passport
    assert first_difference(before, judged(split).passport) is None
    told_later = {field: value for field, value in before.items() if field != "pck_min_score"}
    assert before["pck_min_score"] == 0.25
    assert first_difference(before, told_later) is None, "judged by the same score before it was told"
    assert first_difference(before, judged(split, shift_px={"001.png": 2.0}).passport) is None, "another model may come"
    for field, value in (("confidence", 0.01), ("nms_iou", 0.6), ("max_detections", 20), ("pck_reference", "torso")):
        other = judged(split, SETTINGS.model_copy(update={field: value})).passport
        assert first_difference(before, other) == field
    content = json.loads(split.annotations.read_text())
    content["annotations"][0]["area"] = 0  # another rule for one person is another annotation file, too
    split.annotations.write_text(json.dumps(content))
    assert first_difference(before, judged(split).passport) == "annotations_sha256"
    for origin in (ORIGIN, ORIGIN | {"area_rule": AREA_RULES["annotation"]}):
        assert judged(split, origin=origin).passport["area_rule"] == AREA_RULES["annotation_else_box"]


def test_the_software_that_ran_the_model_is_named(split):
    predictor = Clairvoyant(split.annotations, {})
    origin = ORIGIN | {"runtime": "onnxruntime", "precision": "as exported"}
    judgement = judge(
        predictor, split.annotations, split.images, SETTINGS, origin=origin, progress=lambda done, of: None
    )
    passport = judgement.passport
    assert "onnxruntime" in passport["versions"]


def test_one_changed_pixel_changes_the_passport_and_another_folder_does_not(split, tmp_path):
    before = judged(split).passport["images_sha256"]
    shutil.move(split.images, tmp_path / "elsewhere")
    split.images = tmp_path / "elsewhere"
    assert judged(split).passport["images_sha256"] == before
    first = split.images / "001.png"
    pixels = cv2.imread(str(first))
    pixels[0, 0] = 255 - pixels[0, 0]
    cv2.imwrite(str(first), pixels)
    assert judged(split).passport["images_sha256"] != before


def test_the_fingerprint_of_files_is_what_sha256sum_says_of_sha256sum(tmp_path):
    for name, content in (("b", b"2"), ("a", b"1")):
        (tmp_path / name).write_bytes(content)
    lines = [hashlib.sha256(b"1").hexdigest() + "  a\n", hashlib.sha256(b"2").hexdigest() + "  b\n"]
    expected = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    assert sha256_of_files([tmp_path / "b", tmp_path / "a"]) == expected


def test_a_model_of_other_keypoints_is_refused(split):
    with pytest.raises(PosefoundryError, match=r"keypoints are 2 \(a, b\), but .* are 17 \(nose, left_eye, .*\.\.\.\)"):
        judged(split, skeleton=Skeleton.from_names(["a", "b"]))


def test_the_report_holds_what_was_judged(split, tmp_path):
    # Image 3's person is 25 px off: OKS near 0. Image 1's two persons are 2 px off, image 2's exact.
    judgement = judged(split, shift_px={"001.png": 2.0, "003.png": 25.0})
    write_report(tmp_path / "report", judgement, overlay_images=4)
    report = tmp_path / "report"
    assert json.loads((report / "metrics.json").read_text()) == judgement.metrics
    assert json.loads((report / "passport.json").read_text()) == judgement.passport
    assert json.loads((report / "detections.json").read_text()) == judgement.detections
    with (report / "oks_hist.csv").open() as stream:
        oks = {row["annotation_id"]: float(row["oks"]) for row in csv.DictReader(stream)}
    assert set(oks) == {"1", "2", "3", "5"}
    assert oks["3"] == pytest.approx(1.0)
    assert oks["5"] < 0.2 < oks["1"] < 0.99
    assert len((report / "pr_curve.csv").read_text().splitlines()) == 102
    # Three images have persons: two are the worst, one the best; the image without any has no score.
    assert sorted(path.name for path in (report / "overlays").iterdir()) == [
        "best_01_002.jpg", "worst_01_003.jpg", "worst_02_001.jpg",
    ]  # fmt: skip


def test_overlays_show_the_image_twice_enlarged_with_a_caption(split, tmp_path):
    judgement = judged(split)
    write_report(tmp_path / "report", judgement, overlay_images=1)
    [path] = (tmp_path / "report" / "overlays").iterdir()
    overlay = cv2.imread(str(path))
    assert overlay.shape == (58 + 360, 480 + 8 + 480, 3)  # 160 x 120 px become 480 x 360
    assert (overlay[:58] < 100).any(), "the caption is empty"
    plain = cv2.resize(cv2.imread(str(split.images / "001.png")), (480, 360), interpolation=cv2.INTER_CUBIC)
    for panel in (overlay[58:, :480], overlay[58:, 488:]):
        changed = np.abs(panel.astype(int) - plain).max(axis=2) > 60
        assert 0.01 < changed.mean() < 0.4, "persons are drawn on each panel, and not all over it"


def test_no_overlays_where_none_are_asked_for(split, tmp_path):
    write_report(tmp_path / "report", judged(split), overlay_images=0)
    assert list((tmp_path / "report" / "overlays").iterdir()) == []
