"""The command line's `key=value` words, exit statuses and messages."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from posefoundry import cli
from posefoundry.commands.words import arguments_of
from posefoundry.datasets.receipt import read_receipt
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.errors import PosefoundryError
from posefoundry.models import build_model, load_model
from posefoundry.models.families import MODEL_NAMES
from posefoundry.models.profile import Profile

VERBS = ("train", "val", "predict", "export", "convert", "models", "info", "import-weights", "evaluate")


@pytest.fixture
def run(monkeypatch, command_line, tmp_path):
    """Runs the command line in this process, in a folder of its own; returns exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return command_line


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    torch.save({"model": build_model("yolov8n-pose").state_dict()}, tmp_path / "yolov8n-pose.pt")
    return tmp_path / "yolov8n-pose.pt"


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["a=3", "b=0.5", "c=1e-3"], {"a": 3, "b": 0.5, "c": 1e-3}),
        (["d=True", "e=false", "f=null"], {"d": True, "e": False, "f": None}),
        (["classes=[0, 2]", "device=0,1"], {"classes": [0, 2], "device": "0,1"}),
        (["name=2024", "source=0", "data=no"], {"name": "2024", "source": "0", "data": "no"}),
        (["source=https://x.org/a.jpg?b=c"], {"source": "https://x.org/a.jpg?b=c"}),
        (["street.jpg", "conf=.5"], {"source": "street.jpg", "conf": 0.5}),
    ],
)  # fmt: skip
def test_words(words, arguments):
    assert arguments_of("predict", words, bare="source") == arguments


def test_words_without_a_key_and_twice():
    with pytest.raises(PosefoundryError, match="train: expected key=value, got 'fast'"):
        arguments_of("train", ["fast"])
    with pytest.raises(PosefoundryError, match="train: expected epochs= once"):
        arguments_of("train", ["epochs=1", "epochs=2"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "model=yolov8n-pose.yaml", "epoch=3"], "train: unknown setting 'epoch'; did you mean 'epochs'?"),
        (["pose", "train", "data=coco8-pose.yaml"], "train: expected model=, for example"),
        (["train", "model=yolov8n-pose.yaml", "data=coco8-pose.yaml"], "coco8-pose.yaml: expected its data in"),
        (["val", "model=yolov8n-pose.yaml"], "val: expected data="),
        (["val", "model=nowhere.pt"], "nowhere.pt: expected a model in this file"),
        (["predict", "nowhere.jpg", "model=yolov8n-pose.yaml"], "nowhere.jpg: expected an image, found no file"),
        (["predict", "x.jpg", "model=yolov8n-pose.yaml", "cnf=1"], "predict: unknown setting 'cnf'; did you mean"),
        (["export", "model=yolov8n-pose.yaml", "format=tflite"], "export: format: Input should be 'onnx' or 'engine'"),
        (["convert", "data=nowhere.json", "out=x"], "data: expected a COCO file at"),
        (["convert", "data=nowhere.json", "ot=x"], "convert: expected out="),
        (["info", "yolov8n-pose.yaml", "verbos=1"], "info: unknown setting 'verbos'"),
        (["import-weights", "nowhere.pt"], "nowhere.pt: expected a model in this file"),
    ],
)  # fmt: skip
def test_faults_are_one_line_and_status_2(run, words, told):
    status, out, err = run(*words)
    assert status == 2
    assert err.startswith(f"posefoundry: {told}")
    assert len(err.splitlines()) == 1 and "Traceback" not in err + out


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_examples(verb):
    result = CliRunner().invoke(cli.app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"posefoundry {verb}" in result.output.partition("Example")[2]


def test_help_needs_nothing_heavy():
    heavy = "torch", "mlflow", "cv2", "numpy", "pydantic"
    code = f"import sys, posefoundry.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n"


def test_models_prints_all(run, monkeypatch):
    sizes = [Profile(name=name, n_classes=1, image_size_px=640, layers=9, parameters=3_289_964, gflops=9.1769)
             for name in MODEL_NAMES]  # fmt: skip
    monkeypatch.setattr("posefoundry.commands.verbs.published_profiles", lambda: sizes)
    status, out, _ = run("models")
    assert status == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:17]}
    assert tuple(rows) == MODEL_NAMES
    assert rows["yolov8n-pose"] == ["3.290", "9.177", "640", "1"]


def test_import_weights_and_info(run, checkpoint):
    assert run("import-weights", "yolov8n-pose.pt")[:2] == (0, "yolov8n-pose.safetensors, yolov8n-pose.json\n")
    model, info = load_model(checkpoint.with_suffix(".safetensors"))
    published, _ = load_model(checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), published.parameters(), strict=True))
    status, out, _ = run("info", "yolov8n-pose.safetensors")
    assert status == 0
    assert "3,289,964 in use" in out and "17 of 3 values: nose" in out and info.architecture in out


def test_predict_ends_with_1_if_a_file_failed_and_draws_the_others(run, checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), np.zeros((64, 48, 3), np.uint8))
    (tmp_path / "photos" / "bad.jpg").write_text("no image")
    status, out, err = run("predict", "source=photos", "model=yolov8n-pose.pt", "imgsz=64", "name=seen", "project=out")
    assert status == 1
    assert err.startswith("Skipped photos/bad.jpg: expected an image") and len(err.splitlines()) == 1
    assert out.splitlines()[-1] == "0 persons in 1 image, drawn in out/seen/; 1 failed"
    assert [path.name for path in (tmp_path / "out" / "seen").iterdir()] == ["a.png"]
    assert run("pose", "predict", "photos/a.png", "model=yolov8n-pose.pt", "save=False")[0] == 0
    assert not (tmp_path / "predictions").exists()


def test_convert_writes_a_data_set_with_its_receipt(run, tmp_path):
    from posefoundry.datasets.coco import CocoKeypoints, write_coco_keypoints
    from posefoundry.skeleton import COCO_PERSON_CATEGORY

    def person(number, image_id, **changes):
        points = [20, 20, 2] * 17
        return {"id": number, "image_id": image_id, "category_id": 1, "bbox": [10, 10, 30, 40], "area": 900,
                "iscrowd": 0, "keypoints": points, "num_keypoints": 17} | changes  # fmt: skip

    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / "coco" / f"{split}2017").mkdir()
        cv2.imwrite(str(tmp_path / "coco" / f"{split}2017" / "a.png"), np.zeros((100, 80, 3), np.uint8))
        content = CocoKeypoints(
            images=[{"id": i, "file_name": f"{'.ab'[i]}.png", "width": 80, "height": 100} for i in (1, 2)],
            annotations=[person(1, 1), person(2, 1, iscrowd=1), person(3, 2), person(4, 1, keypoints=[1])],
            categories=[COCO_PERSON_CATEGORY],
        )  # fmt: skip
        write_coco_keypoints(tmp_path / "coco" / "annotations" / f"person_keypoints_{split}2017.json", content)
    status, out, _ = run(
        "convert", "data=coco/annotations/person_keypoints_train2017.json", "out=people", "images=copy"
    )
    assert status == 0
    assert "train: 1 written, " in out and "val: 1 written, " in out
    reasons = {line.annotation_id: line.reason for line in read_receipt(tmp_path / "people" / "receipt.jsonl")}
    assert reasons == {1: None, 2: "crowd", 3: "set_aside:image_missing", 4: "set_aside:keypoints_length"}
    spec = read_dataset_yaml(tmp_path / "people" / "dataset.yaml")
    assert [path.name for path in spec.splits["val"].iterdir()] == ["a.png"]
    assert "is not empty" in run("convert", "data=coco/annotations/person_keypoints_train2017.json", "out=people")[2]


def test_output_is_quiet_where_there_is_no_terminal(checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / "photos" / name), np.zeros((64, 48, 3), np.uint8))
    command = [sys.executable, "-m", "posefoundry.cli", "predict", "photos", "model=yolov8n-pose.pt", "imgsz=64"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Model: yolov8n-pose.pt\n0 persons in 2 images, drawn in predictions/\n"
