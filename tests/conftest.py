"""Who sees a GPU; fixtures that several rooms need: an MLflow store of a test's own, a person on paper."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CommandLine = Callable[..., tuple[Any, str, str]]

# A shell starts its background jobs deaf to the interrupt, and so would be the programs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A standing figure in a box of 1 x 1, in the order of COCO's keypoints.
STANDING_XY = [
    [0.50, 0.06], [0.54, 0.04], [0.46, 0.04], [0.58, 0.06], [0.42, 0.06], [0.68, 0.20], [0.32, 0.20], [0.80, 0.36],
    [0.20, 0.36], [0.88, 0.50], [0.12, 0.50], [0.62, 0.52], [0.38, 0.52], [0.64, 0.74], [0.36, 0.74], [0.66, 0.96],
    [0.34, 0.96],
]  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs from all tests but those that need one, which `pytest -m gpu` runs.

    Trainings, predictors and stages take a GPU of their own where there is one, and build a TensorRT engine; its sums
    differ from a CPU's, and from run to run. A fixture could not hide it: a process asks CUDA for its GPUs once, as
    early as autograd begins, and the answer stays. The variable is in time, and goes to all processes that tests start.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves the tests that need a GPU out where none is to be seen."""
    if in_need := [item for item in items if item.get_closest_marker("gpu")]:
        import torch

        if not torch.cuda.is_available() or torch.version.cuda is None:
            for item in in_need:
                item.add_marker(pytest.mark.skip("needs `pytest -m gpu` and an NVIDIA GPU that PyTorch can use"))


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Runs `posefoundry` with words in this process; returns exit status, stdout and stderr."""
    from posefoundry import cli

    def act(*words: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["posefoundry", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err

    return act


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in them; making one takes seconds, copying it none."""
    from posefoundry.registry import store

    folder = tmp_path_factory.mktemp("empty_store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store.client()
    return folder / "mlflow.db"


@pytest.fixture
def project(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project folder, current, with an embedded store of its own."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "dvc.yaml").write_text("stages: {}\n")
    shutil.copy(empty_store, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("POSEFOUNDRY_USER", "Ada <ada@example.org>")
    yield folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages before `register` leave behind.

    best.safetensors, best.json, model.onnx, decision.json (passed), metrics.json, and street.png, 96 x 128 px. The
    weights are untrained and find nobody; the ONNX model is a toy that sees a person in every 32 x 32 px.
    """
    import cv2
    import numpy as np
    import onnx
    import torch

    from posefoundry.files import write_json_atomic
    from posefoundry.models import ModelInfo, build_model
    from posefoundry.models.weights import save_weights
    from posefoundry.skeleton import COCO_PERSON

    folder = tmp_path_factory.mktemp("trained")
    info = ModelInfo(
        architecture="yolov8n-pose",
        class_names=("person",),
        category_ids=(1,),
        kpt_shape=(17, 3),
        skeleton=COCO_PERSON,
        stride_px=32,
        image_size_px=128,
    )
    torch.manual_seed(0)
    save_weights(folder / "best.safetensors", build_model("yolov8n-pose").state_dict(), info, {})
    onnx.save(_toy_model(info.to_dict()), folder / "model.onnx")
    decision = {"passed": True, "verdict": "Passed: all 3 rules hold.", "rules": [], "production_version": None}
    write_json_atomic(folder / "decision.json", decision)
    write_json_atomic(folder / "metrics.json", {"oks_ap": 0.61, "box_ap": 0.8, "oks_ap_m": None, "passport": {"a": 1}})
    colours = np.random.default_rng(0).integers(60, 255, (3, 4, 3), np.uint8)
    cv2.imwrite(str(folder / "street.png"), colours.repeat(32, axis=0).repeat(32, axis=1))
    return folder


@pytest.fixture(scope="session")
def person() -> Callable[..., dict[str, Any]]:
    """Makes a person whose 17 keypoints are all labelled; its area is half the box."""
    import numpy as np

    standing_xy = np.array(STANDING_XY)

    def make(annotation_id: int, image_id: int, x: float, y: float, width: float, height: float) -> dict[str, Any]:
        points = standing_xy * [width, height] + [x, y]
        return {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": 1,
            "bbox": [x, y, width, height],
            "area": width * height / 2,
            "iscrowd": 0,
            "num_keypoints": 17,
            "keypoints": [number for px, py in points.tolist() for number in (px, py, 2)],
        }

    return make


def _toy_model(description: dict[str, Any]) -> Any:
    """Builds an ONNX pose model whose decoded output (B, 56, A) depends on the colours of each 32 x 32 px, linearly."""
    import json

    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    weight = random.normal(0, 60, (56, 3, 1, 1)).astype(np.float32)
    bias = random.uniform(20, 100, 56).astype(np.float32)
    weight[2:4], bias[2:4] = 10, 20  # small boxes, so that few overlap
    weight[4], bias[4] = 0.3, 0.0  # the score
    nodes = [
        helper.make_node("AveragePool", ["images"], ["colours"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Conv", ["colours", "weight", "bias"], ["grid"]),
        helper.make_node("Reshape", ["grid", "shape"], ["predictions"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("predictions", TensorProto.FLOAT, ["batch", 56, "anchors"])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.array([0, 56, -1], np.int64), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {key: json.dumps(value) for key, value in description.items()})
    return model
