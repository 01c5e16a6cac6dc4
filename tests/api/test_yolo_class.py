"""`YOLO`: what it opens, remembers and changes. The published examples are run elsewhere."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import posefoundry
from posefoundry import YOLO
from posefoundry.api.training import go_on
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.ground_truth import AREA_RULES
from posefoundry.files import read_json, write_json_atomic
from posefoundry.registry.registration import Evidence, register_version
from posefoundry.registry.runs import TrainingRun
from posefoundry.training.loop import Trainer
from posefoundry.training.observer import FileLog

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"


def test_importing_the_package_does_not_import_torch():
    code = "import sys, posefoundry; assert 'torch' not in sys.modules; posefoundry.YOLO; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="no attribute 'YULO'"):
        posefoundry.YULO  # noqa: B018 - the look-up is what is tested


@pytest.mark.parametrize("name", ["yolov8n-pose", "yolo11n-pose", "yolo26n-pose"])
def test_module_gives_the_decoded_tensor(name):
    model = YOLO(f"{name}.yaml")
    with torch.inference_mode():
        assert model.model(torch.rand(2, 3, 96, 128)).shape == (2, 4 + 1 + 51, 252)
    assert model.names == {0: "person"} and model.ckpt_path is None and model.task == "pose"
    layers, parameters, trained, gflops = model.info(verbose=False)
    assert parameters >= trained > 2_800_000 and layers > 100 and 7 < gflops < 10


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("yolov8z-pose.yaml", "did you mean yolov8"),
        ("custom.yaml", "there are yolov8n-pose"),
        ("yolo26n-pose.pt", "posefoundry downloads nothing by itself"),
        ("nowhere.onnx", "expected a model in this file, found none"),
        ("notes.txt", "Expected a model such as"),
        ("models:/people", "Expected models:/NAME@ALIAS"),
    ],
)
def test_what_is_no_model(name, told):
    with pytest.raises(PosefoundryError, match=told):
        YOLO(name)


def test_other_tasks_are_refused():
    with pytest.raises(PosefoundryError, match=r"expected 'pose', .*, got 'segment'"):
        YOLO("yolo26n-pose.yaml", task="segment")


def test_weights_changed_by_hand_are_seen(checkpoints):
    model = YOLO(checkpoints / "yolov8n-pose.pt")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    before = model(image, imgsz=64, conf=0.0)[0].boxes.conf[0].item()
    assert model(image, imgsz=64, conf=0.0)[0].boxes.conf[0].item() == before
    with torch.no_grad():
        for branch in model.model.head.cv3:
            branch[-1].bias += 5
    assert model(image, imgsz=64, conf=0.0)[0].boxes.conf[0].item() > before


def test_fused_gives_the_same_and_cannot_be_saved(checkpoints, workplace):
    plain, fused = (YOLO(checkpoints / "yolov8n-pose.pt") for _ in range(2))
    fused.fuse()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(plain.model(images), fused.model(images), atol=1e-3)
    with pytest.raises(PosefoundryError, match="got a fused one"):
        fused.save("fused.safetensors")


def test_save_and_open_again(checkpoints, tmp_path):
    model = YOLO(checkpoints / "yolo11n-pose.pt")
    model.save(tmp_path / "copy.safetensors")
    again = YOLO(tmp_path / "copy.safetensors")
    assert again.details == model.details
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), model.model.parameters(), strict=True))
    with pytest.raises(PosefoundryError, match=r"ends in \.safetensors"):
        model.save(tmp_path / "copy.pt")


def test_train_keeps_what_val_and_a_later_session_need(workplace):
    model = YOLO("yolov8n-pose.pt")
    metrics = model.train(
        data="your-dataset.yaml", epochs=2, imgsz=64, batch=2, project="out", name="first", verbose=False
    )
    folder = workplace / "out" / "first"
    assert metrics.save_dir.resolve() == folder
    assert {path.name for path in folder.iterdir()} >= {"weights", "results.csv", "results.json", "samples"}
    best = folder / "weights" / "best.safetensors"
    assert model.ckpt_path == str(Path("out/first/weights/best.safetensors"))
    assert read_json(best.with_suffix(".json"))["extra"]["data"] == str(workplace / "your-dataset.yaml")
    remembered = YOLO(best).val(verbose=False)
    assert remembered.pose.map == metrics.pose.map and remembered.box.map == metrics.box.map
    assert remembered.passport["area_rule"] == AREA_RULES["box"]
    assert remembered.passport["input_size_px"] == 64
    assert set(remembered.speed) == {"preprocess", "inference", "postprocess"}


def test_resume_goes_on_to_the_same_weights(workplace, monkeypatch):
    settings = {"data": "your-dataset.yaml", "epochs": 3, "imgsz": 64, "batch": 2, "verbose": False, "workers": 0}
    whole = YOLO("yolov8n-pose.pt")
    whole.train(**settings, name="whole")

    write, end = FileLog.epoch_done, RuntimeError("the power went")

    def write_once(log, epoch, values):
        write(log, epoch, values)
        if epoch == 2:
            raise end

    monkeypatch.setattr(FileLog, "epoch_done", write_once)
    with pytest.raises(RuntimeError, match="the power went"):
        YOLO("yolov8n-pose.pt").train(**settings, name="broken")
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    last = workplace / "runs/pose/broken/weights/last.safetensors"
    model = YOLO(last)
    metrics = model.train(resume=True)
    assert metrics.save_dir.resolve() == workplace / "runs/pose/broken"
    for name in ("best", "last"):
        ours, theirs = (YOLO(f"runs/pose/{run}/weights/{name}.safetensors").model for run in ("broken", "whole"))
        assert all(
            torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
        )
    assert not (workplace / "runs/pose/broken/training.json").exists()
    with pytest.raises(PosefoundryError, match=r"resume: .*broken: .* has finished"):
        YOLO(last).train(resume=True)
    with pytest.raises(PosefoundryError, match=r"resume: expected weights from a training .* got .*yolov8n-pose"):
        YOLO("yolov8n-pose.pt").train(resume=True)


def test_resume_of_a_training_that_was_killed_at_its_first_step(workplace, monkeypatch):
    def fail(trainer, batch):
        raise RuntimeError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", fail)
        with pytest.raises(RuntimeError, match="the power went"):
            YOLO("yolov8n-pose.pt").train(data="your-dataset.yaml", epochs=1, imgsz=64, verbose=False)
    last = workplace / "runs/pose/train/weights/last.safetensors"
    checkpoints = workplace / "runs/pose/train/checkpoints"
    assert [path.name for path in checkpoints.glob("*.json")] == ["step-000000000.json"]
    plan = read_json(workplace / "runs/pose/train/training.json")
    again = {"data": "your-dataset.yaml", "epochs": 1, "imgsz": 64, "name": "train", "exist_ok": True}
    with pytest.raises(PosefoundryError, match=r"holds a training that was cut short\. Go on with it: "):
        YOLO("yolov8n-pose.pt").train(**again)
    last.write_bytes(b"cut short while it was written")
    with pytest.raises(PosefoundryError, match=r"Their training was cut short\. Go on with it: .* resume=true"):
        YOLO(last)
    go_on(last)
    assert read_json(last.with_suffix(".json"))["extra"]["epoch"] == 1
    write_json_atomic(workplace / "runs/pose/train/training.json", plan)
    with pytest.raises(PosefoundryError, match="expected a checkpoint to go on from, found none"):
        YOLO(last).train(resume=True)


def test_pretrained_false_starts_afresh(workplace):
    settings = {"data": "your-dataset.yaml", "epochs": 1, "imgsz": 64, "verbose": False, "lr0": 1e-9, "mosaic": 0.0}
    start = YOLO("yolov8n-pose.pt").model.state_dict()["model.0.conv.weight"].clone()
    kept, fresh = YOLO("yolov8n-pose.pt"), YOLO("yolov8n-pose.pt")
    kept.train(**settings)
    fresh.train(**settings, pretrained=False, seed=9)
    assert torch.allclose(kept.model.state_dict()["model.0.conv.weight"], start, atol=1e-4)
    assert not torch.allclose(fresh.model.state_dict()["model.0.conv.weight"], start, atol=1e-4)


def test_two_classes_and_flat_keypoints_of_other_number(tiny_people, workplace):
    """A data set of two classes with 5 keypoints of two values: heads are made anew, and val gives one AP a class."""
    folder = workplace / "animals"
    shutil.copytree(tiny_people / "images", folder / "images")
    for path in sorted((tiny_people / "labels").rglob("*.txt")):
        fields = path.read_text().split()
        flat = [value for i in range(5) for value in fields[5 + 3 * i : 7 + 3 * i]]
        target = folder / path.relative_to(tiny_people)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(" ".join([str(int(path.stem) % 2), *fields[1:5], *flat]))
    content = {"train": "images/train", "val": "images/val", "kpt_shape": [5, 2], "flip_idx": [0, 2, 1, 4, 3],
               "names": ["cat", "dog"]}  # fmt: skip
    (folder / "animals.yaml").write_text(yaml.safe_dump(content))
    model = YOLO("yolov8n-pose.pt")
    metrics = model.train(data=folder / "animals.yaml", epochs=1, imgsz=64, verbose=False)
    assert model.names == {0: "cat", 1: "dog"} and len(metrics.pose.maps) == len(metrics.box.maps) == 2
    result = model(folder / "images" / "val" / "00.png", conf=0.0, max_det=3)[0]
    assert result.keypoints.data.shape == (3, 5, 2) and result.keypoints.conf is None
    result.plot()


def test_perfect_and_absent_detections_bound_the_metrics(workplace, monkeypatch):
    """The judge behind `val`, with a predictor that repeats the labels: 1; that finds nobody: 0."""
    from posefoundry.api.data import open_data
    from posefoundry.datasets.coco import load_coco_keypoints
    from posefoundry.inference.predictor import Predictor
    from posefoundry.inference.results import PoseResult

    truth = load_coco_keypoints(open_data("your-dataset.yaml").truth("val", workplace).annotations)

    def repeat(self, paths, **_):
        results = []
        for image, path in zip(truth.images, paths, strict=True):
            own = [a for a in truth.annotations if a["image_id"] == image["id"]] * self.finds
            boxes = np.array([a["bbox"] for a in own], np.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            points = np.array([a["keypoints"] for a in own], np.float32).reshape(-1, 17, 3)
            ones, zeros = np.ones(len(own), np.float32), np.zeros(len(own), np.int64)
            speed = {"preprocess": 1.0, "inference": 2.0, "postprocess": 3.0}
            results.append(PoseResult(boxes, ones, zeros, points, (96, 128), path, speed))
        return results

    monkeypatch.setattr(Predictor, "predict", repeat)
    for finds in (1, 0):
        monkeypatch.setattr(Predictor, "finds", finds, raising=False)
        metrics = YOLO("yolov8n-pose.pt").val("your-dataset.yaml", imgsz=64)
        values = (metrics.box.map, metrics.box.map50, metrics.pose.map, metrics.pose.map75, metrics.box.maps[0])
        assert values == pytest.approx([finds] * 5)
        assert metrics.results_dict["metrics/mAP50-95(P)"] == metrics.fitness == pytest.approx(finds)
        assert metrics.keypoints["pck_0.05"] == pytest.approx(finds)
        assert (f"PCK@0.05 {finds}.000" in str(metrics)) and metrics.warnings == []
        assert metrics.speed == {"preprocess": 1.0, "inference": 2.0, "postprocess": 3.0}


def test_val_without_data_and_with_reports(workplace, checkpoints):
    with pytest.raises(PosefoundryError, match="val: expected data="):
        YOLO("yolov8n-pose.yaml").val()
    (workplace / "tags.csv").write_text("file_name,site\n00.png,yard\n01.png,yard\n")
    own = {"tags": "tags.csv", "pck_thresholds": [0.3], "pck_reference": "torso", "pckh_threshold": 0.7}
    metrics = YOLO("yolov8n-pose.pt").val(data="coco8-pose.yaml", imgsz=64, save_json=True, split="train", **own)
    assert [row["images"] for row in metrics.slices if row["slice"] == "site=yard"] == [2]
    assert [key for key in metrics.keypoints if key.startswith("pck")] == ["pck_0.3", "pckh_0.7"]
    assert metrics.passport["pck_reference"] == "torso"
    assert metrics.save_dir == Path("runs/pose/val")
    assert read_json(metrics.save_dir / "metrics.json")["images"] == 4
    assert read_json(metrics.save_dir / "slices.json") == metrics.slices
    assert read_json(metrics.save_dir / "errors.json") == metrics.errors


def test_a_training_on_a_coco_file_is_judged_by_the_val_file_beside_it(workplace, tiny_coco):
    named = tiny_coco / "annotations" / "person_keypoints_train2017.json"
    metrics = YOLO("yolov8n-pose.yaml").train(data=named, epochs=1, imgsz=64, batch=2, verbose=False)
    assert f" images, val of {named.absolute()}; " in str(metrics)


def test_val_judges_the_coco_file_that_is_named_and_not_its_sibling(workplace, checkpoints, tiny_coco):
    annotations = shutil.copytree(tiny_coco, workplace / "coco") / "annotations"
    (annotations / "person_keypoints_val2017.json").unlink()
    named = annotations / "person_keypoints_train2017.json"
    metrics = YOLO("yolov8n-pose.pt").val(data=named, imgsz=64)
    assert f"4 images, train of {named.absolute()}; " in str(metrics)


def test_predict_saves_what_is_asked(workplace, tiny_people):
    model = YOLO("yolov8n-pose.pt")
    asked = {"conf": 0.0, "max_det": 2, "imgsz": 64, "save": True, "save_txt": True, "save_crop": True, "name": "p"}
    results = model([str(p) for p in sorted((tiny_people / "images" / "val").iterdir())] * 2, **asked)
    folder = workplace / "runs" / "pose" / "p"
    assert {result.save_dir for result in results} == {str(Path("runs/pose/p"))}
    names = [f"{n:02d}{again}" for n in range(4) for again in ("", "_2")]
    assert sorted(path.name for path in folder.glob("*.png")) == sorted(f"{name}.png" for name in names)
    assert sorted(path.stem for path in (folder / "labels").iterdir()) == sorted(names)
    assert all(len(path.read_text().splitlines()) == 2 for path in (folder / "labels").iterdir())
    model(str(tiny_people / "images" / "val"), imgsz=64, save=True, name="p")
    assert (workplace / "runs" / "pose" / "p2" / "00.png").is_file()


def test_predict_keeps_classes_asked_for(workplace):
    model = YOLO("yolov8n-pose.pt")
    assert len(model(imgsz=64, conf=0.0, classes=[0])[0]) > 0
    assert len(model(imgsz=64, conf=0.0, classes=1)[0]) == 0


def test_saved_video_has_all_frames(workplace):
    import cv2

    writer = cv2.VideoWriter("in.avi", cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for shade in range(0, 200, 40):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()
    list(YOLO("yolov8n-pose.pt")("in.avi", stream=True, imgsz=64, save=True))
    video = cv2.VideoCapture("runs/pose/predict/in.mp4")
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and video.get(cv2.CAP_PROP_FRAME_WIDTH) == 64


def test_registered_version(project, trained):
    with TrainingRun.start("people", "a run", {}) as run:
        pass
    evidence = Evidence(
        weights=trained / "best.safetensors",
        onnx=trained / "model.onnx",
        decision=trained / "decision.json",
        metrics={"oks_ap": 0.61},
        latency_p50_ms=12.3,
        example_image=trained / "street.png",
    )
    register_version("posefoundry", "people", run.run_id, evidence)
    model = YOLO("models:/posefoundry@candidate")
    assert model.details.image_size_px == 128
    assert len(model(imgsz=64, conf=0.0, max_det=1)[0]) == 1


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "weights" / "yolov8n-pose.pt").is_file() or not (SHARED / "coco-real").is_dir(),
    reason="../shared/weights and ../shared/coco-real are not here",
)
def test_published_weights_on_real_photographs(tmp_path):
    """AP of the family's own predictor on 192 images of val2017: keypoints 0.4739, boxes 0.3995.

    The ONNX model is judged on every fourth image, beside PyTorch.
    """
    shutil.copy(SHARED / "weights" / "yolov8n-pose.pt", tmp_path)
    model = YOLO(tmp_path / "yolov8n-pose.pt")
    annotations = (SHARED / "coco-real" / "annotations" / "person_keypoints_val2017.json").resolve()
    metrics = model.val(data=annotations, batch=8, verbose=False)
    assert metrics.pose.map == pytest.approx(0.4739, abs=0.003)
    assert metrics.box.map == pytest.approx(0.3995, abs=0.003)
    assert metrics.passport["area_rule"] == "ground truth: area of the annotation; detections: area of the box"

    content = read_json(annotations)
    content["images"] = content["images"][::4]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    (tmp_path / "annotations").mkdir()
    write_json_atomic(tmp_path / "annotations" / annotations.name, content)
    (tmp_path / "val2017").symlink_to((SHARED / "coco-real" / "val2017").resolve())
    fourth = tmp_path / "annotations" / annotations.name
    pytorch, onnx = (
        judged.val(data=fourth, batch=8, verbose=False) for judged in (model, YOLO(model.export(format="onnx")))
    )
    assert onnx.passport["runtime"] == "onnxruntime"
    assert onnx.pose.map == pytest.approx(pytorch.pose.map, abs=0.001) and pytorch.pose.map > 0.4
    assert onnx.box.map == pytest.approx(pytorch.box.map, abs=0.001) and pytorch.box.map > 0.3
