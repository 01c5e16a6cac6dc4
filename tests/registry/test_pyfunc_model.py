import base64
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from posefoundry.errors import PosefoundryError
from posefoundry.inference.predictor import Predictor
from posefoundry.registry import store
from posefoundry.registry.registration import register_version, save_pyfunc


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory, empty_store):
    from posefoundry.registry.registration import Evidence

    folder = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_store}")
        evidence = Evidence(
            weights=trained / "best.safetensors",
            onnx=trained / "model.onnx",
            decision=trained / "decision.json",
            metrics={},
            latency_p50_ms=None,
            example_image=trained / "street.png",
        )
        save_pyfunc(folder / "model", evidence)
        with store.fluent() as mlflow:
            return mlflow.pyfunc.load_model(str(folder / "model"))


@pytest.fixture(scope="module")
def path(trained):
    return trained / "street.png"


@pytest.fixture(scope="module")
def image_rgb(path):
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])


@pytest.fixture(scope="module")
def expected(trained, path):
    """What the Predictor of the evaluation finds, in the form of the registered model."""
    [result] = Predictor.load(trained / "model.onnx").predict([path])
    assert len(result) > 5
    return {
        "image_size_hw": [96, 128],
        "persons": [
            {"bbox_xyxy": box.tolist(), "score": float(score), "class": "person", "keypoints_xyv": points.tolist()}
            for box, score, points in zip(result.boxes_xyxy, result.scores, result.keypoints_xyv, strict=True)
        ],
    }


def test_a_path(model, path, expected):
    assert model.predict(str(path)) == [expected]


def test_a_list_of_paths(model, path, expected):
    assert model.predict([str(path), str(path)]) == [expected, expected]


def test_an_image(model, image_rgb, expected):
    assert model.predict(image_rgb) == [expected]


def test_a_batch(model, image_rgb, expected):
    assert model.predict(np.stack([image_rgb, image_rgb])) == [expected, expected]


def test_images_of_two_sizes(model, image_rgb, expected):
    first, second = model.predict([image_rgb, image_rgb[:64]])
    assert first == expected
    assert second["image_size_hw"] == [64, 128]


def test_a_column_of_paths(model, path, expected):
    import pandas as pd

    assert model.predict(pd.DataFrame({"image": [str(path)], "other": [1]})) == [expected]
    assert model.predict(pd.Series([str(path), str(path)])) == [expected, expected]


def test_what_a_server_receives(model, path, image_rgb, expected):
    """JSON has neither uint8 nor files: nested lists, and file content as a data URI."""
    assert model.predict([image_rgb.tolist()]) == [expected]
    assert model.predict(image_rgb.astype(np.int64)) == [expected]
    content = base64.b64encode(path.read_bytes()).decode()
    assert model.predict([f"data:image/png;base64,{content}"]) == [expected]


def test_nothing_is_nothing(model):
    assert model.predict([]) == []


def test_parameters(model, image_rgb, expected):
    best = expected["persons"][0]["score"]
    assert model.predict(image_rgb, params={"confidence": best + 0.001}) == [{**expected, "persons": []}]
    [crowded] = model.predict(image_rgb, params={"nms_iou": 1.0})
    assert len(crowded["persons"]) > len(expected["persons"])


def test_the_answer_is_json(model, image_rgb, expected):
    assert json.loads(json.dumps(model.predict(image_rgb))) == [expected]


def test_channels_are_rgb(model, image_rgb, expected):
    assert model.predict(image_rgb[..., ::-1]) != [expected]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"got an array of shape \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"got an array of shape \(4, 4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "Expected pixels uint8, 0 to 255, got float32"),
        (np.full((4, 4, 3), 256), "Expected pixels uint8, 0 to 255, got int64"),
        ("nowhere.jpg", "nowhere.jpg: expected an image, found no file"),
        (["data:image/png;base64,?"], "broken base64"),
        (["data:image/png;base64,AAAA"], "the given image: expected an image"),
    ],
)
def test_other_inputs_are_refused(given, message, model):
    with pytest.raises(PosefoundryError, match=message):
        model.predict(given)


def test_a_frame_of_other_columns_is_refused(model):
    import pandas as pd

    with pytest.raises(PosefoundryError, match=r"or with a column 'image', got \['a', 'b'\]"):
        model.predict(pd.DataFrame({"a": ["x"], "b": ["y"]}))


def test_signature_and_example(model, expected):
    signature = model.metadata.signature
    assert [str(entry.type) for entry in signature.inputs] == ["Any"]
    assert signature.outputs is not None
    assert {p.name: p.default for p in signature.params} == {"confidence": 0.25, "nms_iou": 0.7}
    assert model.predict(model.input_example) == [expected]


ELSEWHERE = """
import importlib.util, json, pathlib, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path[:] = [folder for folder in sys.path if not pathlib.Path(folder, "posefoundry").is_dir()]
import mlflow
assert importlib.util.find_spec("posefoundry") is None
model = mlflow.pyfunc.load_model("models:/posefoundry@candidate")
import posefoundry
print(json.dumps([posefoundry.__file__, model.predict(sys.argv[1])]))
"""


@pytest.mark.slow
def test_it_needs_no_posefoundry_to_be_installed(project, evidence, path, expected):
    run = store.client().create_run(store.experiment_id("people"))
    register_version("posefoundry", "people", run.info.run_id, evidence)
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    module, predicted = json.loads(done.stdout)
    assert module.startswith(str(project / "mlartifacts"))
    assert predicted == [expected]
