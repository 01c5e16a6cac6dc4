"""The examples of the documents that users come from run with our import and command name, for each family.

Training lasts one epoch at 64 px, addresses lead to this machine, and GPUs are the CPU; nothing else is changed.
"""

import copy
import re
import shlex
import sys
from pathlib import Path

import pytest

from posefoundry import YOLO, cli
from posefoundry.export import onnx

SEEDS = Path(__file__).resolve().parents[2] / ".." / "shared" / "seeds"
FAMILIES = ("yolov8n-pose", "yolo11n-pose", "yolo26n-pose")

PYTHON = [
    """
    model = YOLO("{name}.yaml")
    model = YOLO("{name}.pt")
    model = YOLO("{name}.yaml").load("{name}.pt")
    results = model.train(data="coco8-pose.yaml", epochs=1, imgsz=64)
    """,
    """
    model = YOLO("{name}.yaml")
    model = YOLO("{name}.pt")
    results = model.train(data="your-dataset.yaml", epochs=1, imgsz=64)
    """,
    """
    model = YOLO("{name}.pt")
    model = YOLO("path/to/best.pt")
    metrics = model.val()
    metrics.box.map, metrics.box.map50, metrics.box.map75, metrics.box.maps
    metrics.pose.map, metrics.pose.map50, metrics.pose.map75, metrics.pose.maps
    """,
    """
    model = YOLO("path/to/best.pt")
    results = model("{web}/images/bus.jpg")
    print(results[0].keypoints.xy)
    results[0].show()
    """,
    """
    model = YOLO("{name}.pt")
    results = model("{web}/usage/python/")
    results[0].show()
    """,
    """
    model = YOLO("path/to/best.pt")
    model.export(format="onnx")
    """,
]

COMMANDS = [
    "pose train data=coco8-pose.yaml model={name}.yaml epochs=1 imgsz=64",
    "pose train data=coco8-pose.yaml model={name}.pt epochs=1 imgsz=64",
    "pose train data=coco8-pose.yaml model={name}.yaml pretrained={name}.pt epochs=1 imgsz=64",
    "val pose data=coco-pose.yaml device=cpu",
    "val pose data=coco8-pose.yaml batch=1 device=cpu",
    "val pose data=coco-pose.yaml batch=1 device=cpu",
    "pose val model={name}.pt",
    "pose val model=path/to/best.pt",
    "pose predict model={name}.pt source='{web}/images/bus.jpg'",
    "pose predict model=path/to/best.pt source='{web}/images/bus.jpg'",
    "export model={name}.pt format=onnx",
    "export model=path/to/best.pt format=onnx",
    "predict model={name}.onnx",
]


@pytest.fixture(scope="module")
def traced():
    """Graphs by family: its checkpoints hold the same weights, and tracing is what an export takes its time for."""
    graphs = {}
    trace = onnx._trace

    def trace_once(network, **settings):
        name = network.model.name
        if name not in graphs:
            graphs[name] = trace(network, **settings)
        return copy.deepcopy(graphs[name])

    return trace_once


@pytest.fixture
def home(workplace, monkeypatch, request, traced):
    """The workplace with a best.pt of the family, a trained model for commands that name none, and no viewer."""
    name = request.getfixturevalue("name")
    (workplace / "path" / "to").mkdir(parents=True)
    (workplace / "path" / "to" / "best.pt").write_bytes((workplace / f"{name}.pt").read_bytes())
    YOLO(f"{name}.pt").save("models/train/best.safetensors")
    (workplace / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(onnx, "_trace", traced)
    monkeypatch.setattr("PIL.ImageShow.show", lambda image, title: True)
    return workplace


@pytest.mark.parametrize("name", FAMILIES)
def test_python_examples(name, home, web):
    for example in PYTHON:
        run_python(example.format(name=name, web=web))
    assert (home / "path" / "to" / "best.onnx").is_file()
    assert (home / "runs" / "pose" / "train2" / "weights" / "best.safetensors").is_file()


@pytest.mark.parametrize("name", FAMILIES)
def test_command_examples(name, home, web, monkeypatch):
    for example in COMMANDS:
        run_command(example.format(name=name, web=web), monkeypatch)
    assert (home / "predictions" / "bus.jpg").is_file()


@pytest.mark.skipif(not SEEDS.is_dir(), reason="../shared/seeds, the documents themselves, is not here")
def test_no_example_of_the_documents_is_missing():
    """Each example line of the documents is one that the tests above run."""
    ours = {_plain(line) for example in PYTHON for line in example.splitlines()}
    ours |= {_plain(f"yolo {command}") for command in COMMANDS}
    theirs = set()
    for path in sorted(SEEDS.glob("*.txt")):
        text = path.read_text()
        for block in re.findall(r"```(?:python|bash)\n(.*?)```", text, flags=re.DOTALL):
            theirs |= {_plain(line) for line in block.splitlines()}
        theirs |= {_plain(command) for command in re.findall(r"`(yolo [^`]+)`", text)}
        theirs |= {_plain(line) for line in text.splitlines() if re.match(r"(model|results)\b.*[=(]|print\(", line)}
    theirs -= {"", "from ultralytics import YOLO"}
    assert len(theirs) > 15
    assert theirs - ours == set()


def run_python(example):
    """Runs lines as a user's program would."""
    code = "\n".join(line.strip() for line in example.strip().splitlines())
    exec(compile(code, "example", "exec"), {"YOLO": YOLO})


def run_command(words, monkeypatch):
    """Runs the command line in this process; it must end with status 0."""
    monkeypatch.setattr(sys, "argv", ["posefoundry", *shlex.split(words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, words


def _plain(line):
    """Leaves out what the tests change: comments, families, addresses, devices, epochs and sizes."""
    line = line.partition("#")[0].strip()
    line = re.sub(r"\{name\}|yolo(v8|11|26)n-pose", "NAME", line)
    line = re.sub(r"\{web\}|https?://[a-z.]+", "WEB", line)
    line = re.sub(r"device=[\w|]+", "device=DEVICE", line)
    line = re.sub(r"epochs=\d+", "epochs=N", line)
    line = re.sub(r"imgsz=\d+", "imgsz=N", line)
    if line.startswith("metrics."):
        line = ""  # several a line in ours
    return line.replace("'", '"').replace('source="WEB/images/bus.jpg"', "source=WEB/images/bus.jpg")
