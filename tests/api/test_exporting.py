"""Where an exported file goes."""

import shutil
from pathlib import Path

import yaml

from posefoundry import YOLO


def test_beside_the_weights_but_never_into_what_the_pipeline_made(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    lock = {"stages": {"train": {"cmd": "x", "outs": [{"path": "models/train", "md5": "0.dir"}]}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    YOLO(workplace / "yolov8n-pose.pt").save("models/train/best.safetensors")
    shutil.copytree("models/train", "models/mine")
    made = sorted(Path("models/train").iterdir())

    assert YOLO("models/mine/best.safetensors").export(format="onnx", imgsz=64) == "models/mine/best.onnx"
    assert YOLO("models/train/best.safetensors").export(format="onnx", imgsz=64) == "best.onnx"
    assert sorted(Path("models/train").iterdir()) == made
