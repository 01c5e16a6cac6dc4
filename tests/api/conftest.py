"""A workplace as a user of the published examples has it, small: data, checkpoints and a picture on the web."""

import http.server
import shutil
import threading

import cv2
import numpy as np
import pytest
import torch
import yaml

from posefoundry.datasets.coco import write_coco_keypoints
from posefoundry.datasets.truth import coco_from_labels
from posefoundry.datasets.yolo import format_label_line, read_dataset_yaml
from posefoundry.models import build_model
from posefoundry.skeleton import COCO_PERSON

FAMILIES = ("yolov8n-pose", "yolo11n-pose", "yolo26n-pose")


def draw_split(folder, split, count, seed):
    """Writes images of 96 x 128 px with a bright person each, and their labels."""
    random = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (folder / kind / split).mkdir(parents=True)
    for number in range(count):
        image = random.integers(0, 60, (96, 128, 3), np.uint8)
        cx, cy, w, h = 0.5 + random.uniform(-0.2, 0.2), 0.5, 0.3, 0.8
        left, top = int((cx - w / 2) * 128), int((cy - h / 2) * 96)
        image[top : top + int(h * 96), left : left + int(w * 128)] = 230
        points = np.column_stack(
            (cx + w * random.uniform(-0.45, 0.45, 17), cy + h * random.uniform(-0.45, 0.45, 17), np.full(17, 2))
        )
        cv2.imwrite(str(folder / "images" / split / f"{number:02d}.png"), image)
        line = format_label_line(0, (cx, cy, w, h), points)
        (folder / "labels" / split / f"{number:02d}.txt").write_text(line + "\n")


@pytest.fixture(scope="session")
def tiny_people(tmp_path_factory):
    """A YOLO pose data set of four images to learn and four to validate on; a folder as coco8-pose is published."""
    folder = tmp_path_factory.mktemp("people")
    draw_split(folder, "train", 4, seed=1)
    draw_split(folder, "val", 4, seed=2)
    content = {
        "path": ".",
        "train": "images/train",
        "val": "images/val",
        "kpt_shape": [17, 3],
        "flip_idx": list(COCO_PERSON.flip_indices),
        "names": {0: "person"},
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(scope="session")
def tiny_coco(tiny_people, tmp_path_factory):
    """The same people in the layout of COCO's release."""
    folder = tmp_path_factory.mktemp("coco")
    spec = read_dataset_yaml(tiny_people / "dataset.yaml")
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        shutil.copytree(tiny_people / "images" / split, folder / "images" / f"{split}2017")
        content = coco_from_labels(spec, split)
        write_coco_keypoints(folder / "annotations" / f"person_keypoints_{split}2017.json", content)
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A checkpoint `<model>.pt` of each family: tensors by name, in half precision, untrained."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in FAMILIES:
        torch.manual_seed(0)
        tensors = {key: value.half() if value.is_floating_point() else value
                   for key, value in build_model(name).state_dict().items()}  # fmt: skip
        torch.save({"model": tensors}, folder / f"{name}.pt")
    return folder


@pytest.fixture
def workplace(tiny_people, tiny_coco, checkpoints, tmp_path, monkeypatch):
    """The current folder, with all that the published examples name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POSEFOUNDRY_DATASETS", raising=False)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "coco8-pose").symlink_to(tiny_people)
    (tmp_path / "datasets" / "coco-pose").symlink_to(tiny_coco)
    text = (tiny_people / "dataset.yaml").read_text().replace("path: .", f"path: {tiny_people}")
    (tmp_path / "your-dataset.yaml").write_text(text)
    for path in checkpoints.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def web():
    """A server on this machine that answers every path with a picture; its address."""
    picture = cv2.imencode(".jpg", np.random.default_rng(3).integers(0, 255, (80, 64, 3), np.uint8))[1].tobytes()

    class Pictures(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            missing = "missing" in self.path
            content, kind = (b"<html>", "text/html") if "page" in self.path else (picture, "image/jpeg")
            self.send_response(404 if missing else 200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            if not missing:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
