"""The runtimes: the same answers, untouched callers, and clear words where something is missing."""

import copy
import importlib.util
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from posefoundry.errors import PosefoundryError
from posefoundry.inference import backends
from posefoundry.inference.backends import OnnxBackend, TensorRtBackend, TorchBackend, load_backend
from posefoundry.models import build_model, save_weights


@pytest.fixture(scope="module")
def batch():
    return np.random.default_rng(0).random((2, 3, 64, 96), np.float32)


def test_torch_backend_equals_the_model_and_leaves_it_alone(model, info, batch):
    before = copy.deepcopy(model.state_dict())
    backend = TorchBackend(model, info, device="cpu")
    with torch.no_grad():
        expected = model(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(backend.infer(batch), expected, atol=1e-3)
    assert backend.infer(batch).dtype == np.float32
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "dfl" not in name)


def test_cudnn_stays_on_and_tf32_off_while_it_infers(model, info, batch):
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, images):
            seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))
            return images

    backend = TorchBackend(model, info, device="cpu")
    backend._model = Spy()
    backend.infer(batch)
    assert seen == [(True, False)]
    assert torch.backends.cudnn.allow_tf32


def test_a_batch_too_large_for_a_gpu_is_told(model, info, batch):
    class Full(torch.nn.Module):
        def forward(self, images):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    backend = TorchBackend(model, info, device="cpu")
    backend._model = Full()
    with pytest.raises(
        PosefoundryError, match=r"too little memory for a batch of shape \(2, 3, 64, 96\)\. Lower the batch size or"
    ):
        backend.infer(batch)


def test_reduced_precision_is_near_and_float32_outside(model, info, batch):
    exact = TorchBackend(model, info, device="cpu").infer(batch)
    reduced = TorchBackend(model, info, device="cpu", precision="bfloat16").infer(batch)
    assert reduced.dtype == np.float32
    assert np.abs(reduced - exact).max() > 0
    np.testing.assert_allclose(reduced[:, :2], exact[:, :2], atol=1.0)


def test_weights_open_by_their_suffix(model, info, tmp_path, batch):
    save_weights(tmp_path / "best.safetensors", model.state_dict(), info, {})
    backend = load_backend(tmp_path / "best.safetensors", device="cpu")
    assert backend.info == info and backend.device_name
    assert backend.infer(batch).shape == (2, 56, 8 * 12 + 4 * 6 + 2 * 3)


@pytest.mark.parametrize("end2end", [True, False])
def test_one_of_two_heads_is_chosen(make_info, tmp_path, batch, end2end):
    torch.manual_seed(0)
    two_heads = build_model("yolo26n-pose").eval()
    save_weights(tmp_path / "best.safetensors", two_heads.state_dict(), make_info(two_heads), {})
    backend = load_backend(tmp_path / "best.safetensors", device="cpu", end2end=end2end)
    assert backend.info.end2end is end2end and backend.info.needs_nms is not end2end
    with torch.no_grad():
        heads = two_heads.heads(torch.from_numpy(batch))
    scores = (heads.one_to_one if end2end else heads).scores.sigmoid()
    np.testing.assert_allclose(backend.infer(batch)[:, 4:5], scores, atol=1e-5)


def test_the_choice_of_a_head_travels_with_the_weights(make_info, tmp_path):
    two_heads = build_model("yolo26n-pose")
    info = replace(make_info(two_heads), end2end=False)
    save_weights(tmp_path / "best.safetensors", two_heads.state_dict(), info, {})
    assert load_backend(tmp_path / "best.safetensors", device="cpu").info.needs_nms
    assert not load_backend(tmp_path / "best.safetensors", device="cpu", end2end=True).info.needs_nms


def test_families_with_one_head_have_no_choice(model, info, tmp_path, batch):
    save_weights(tmp_path / "best.safetensors", model.state_dict(), info, {})
    for end2end in (True, False):
        backend = load_backend(tmp_path / "best.safetensors", device="cpu", end2end=end2end)
        assert backend.info == info and backend.info.needs_nms


def test_an_exported_model_has_the_head_it_has(info, tmp_path):
    exported = replace(info, architecture="yolo26n-pose")
    write_onnx(tmp_path / "model.onnx", as_metadata(exported))
    assert not load_backend(tmp_path / "model.onnx", device="cpu", end2end=True).info.needs_nms
    with pytest.raises(PosefoundryError, match="exported with end2end=False, got one with end2end=True"):
        load_backend(tmp_path / "model.onnx", device="cpu", end2end=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, "device must be auto, cpu or cuda, got 'tpu'"),
        ({"precision": "int8"}, "precision must be one of float32, .* got 'int8'"),
    ],
)
def test_impossible_options_are_refused(model, info, options, words):
    with pytest.raises(PosefoundryError, match=words):
        TorchBackend(model, info, **options)


def test_a_missing_gpu_is_said(model, info):
    with pytest.raises(PosefoundryError, match="Expected a GPU for device 'cuda', found 0"):
        TorchBackend(model, info, device="cuda")


def write_onnx(path, metadata):
    """A model of one node: sums each image into a (B, 56, 1) output."""
    import onnx
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["b", 3, "h", "w"])
    output = helper.make_tensor_value_info("predictions", TensorProto.FLOAT, ["b", 56, 1])
    nodes = [
        helper.make_node("ReduceSum", ["images", "axes"], ["sum"], keepdims=1),
        helper.make_node("Reshape", ["sum", "shape"], ["flat"]),
        helper.make_node("Tile", ["flat", "repeats"], ["predictions"]),
    ]
    constants = {"axes": [1, 2, 3], "shape": [-1, 1, 1], "repeats": [1, 56, 1]}
    initializers = [helper.make_tensor(name, TensorProto.INT64, [len(v)], v) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "sum", [image], [output], initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(proto, metadata)
    onnx.save(proto, path)


def as_metadata(info):
    return {name: json.dumps(value) for name, value in info.to_dict().items()} | {"version": "0.1.0"}


def test_onnx_backend_runs_and_describes_itself(info, tmp_path, batch):
    write_onnx(tmp_path / "model.onnx", as_metadata(info))
    backend = load_backend(tmp_path / "model.onnx", device="cpu", threads=1)
    assert backend.info == info
    np.testing.assert_allclose(backend.infer(batch)[:, 0, 0], batch.sum(axis=(1, 2, 3)), rtol=1e-5)


def test_onnx_files_that_do_not_fit_are_refused(tmp_path, info):
    with pytest.raises(PosefoundryError, match="found no file"):
        OnnxBackend(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(PosefoundryError, match=r"text\.onnx: expected a model that ONNX Runtime can load"):
        OnnxBackend(tmp_path / "text.onnx")
    write_onnx(tmp_path / "bare.onnx", {})
    with pytest.raises(PosefoundryError, match=r"bare\.onnx: Expected a model's description"):
        OnnxBackend(tmp_path / "bare.onnx")


@pytest.fixture
def runtime_with_cuda(monkeypatch, info):
    """An ONNX Runtime with CUDA, which notes the providers asked for and has those that `usable` names."""

    class Session:
        def __init__(self, path, options, providers):
            runtime.asked = providers

        def get_providers(self):
            return runtime.usable

        def get_modelmeta(self):
            return SimpleNamespace(custom_metadata_map=as_metadata(info))

        def get_inputs(self):
            return [SimpleNamespace(name="images")]

    runtime = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=SimpleNamespace,
        InferenceSession=Session,
        usable=["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    return runtime


@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_onnx_runs_on_the_gpu_asked_for_with_all_digits(runtime_with_cuda, tmp_path, device, index):
    (tmp_path / "model.onnx").touch()
    assert OnnxBackend(tmp_path / "model.onnx", device=device).device_name == "CUDA"
    name, options = runtime_with_cuda.asked[0]
    assert (name, options) == ("CUDAExecutionProvider", {"device_id": index, "use_tf32": 0})


def test_onnx_on_the_cpu_in_place_of_the_gpu_asked_for_is_refused(runtime_with_cuda, tmp_path):
    (tmp_path / "model.onnx").touch()
    runtime_with_cuda.usable = ["CPUExecutionProvider"]
    with pytest.raises(PosefoundryError, match=r"expected ONNX Runtime to run on 'cuda:1', it could not"):
        OnnxBackend(tmp_path / "model.onnx", device="cuda:1")
    assert OnnxBackend(tmp_path / "model.onnx", device="auto").device_name != "CUDA"


@pytest.fixture
def engine(tmp_path, info):
    path = tmp_path / "model.engine"
    path.write_bytes(backends.TENSORRT_PLAN_TAG + bytes(100))
    path.with_suffix(".json").write_text(json.dumps(as_metadata(info)))
    return path


def test_junk_never_reaches_tensorrt(tmp_path):
    with pytest.raises(PosefoundryError, match="expected a TensorRT engine, found no file"):
        load_backend(tmp_path / "missing.engine")
    (tmp_path / "junk.engine").write_bytes(b"\0" * 100)
    with pytest.raises(PosefoundryError, match="does not begin like one"):
        load_backend(tmp_path / "junk.engine")


def test_tensorrt_without_a_gpu_says_so(engine):
    with pytest.raises(PosefoundryError, match=r"expected an NVIDIA GPU .* Use the ONNX file"):
        TensorRtBackend(engine)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_tensorrt_without_its_package_says_so(engine, monkeypatch):
    monkeypatch.setattr(backends, "_torch_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(PosefoundryError, match=r"the package tensorrt, which is not installed\. Install posefoundry"):
        TensorRtBackend(engine)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(PosefoundryError, match=r"expected a model file \(\.safetensors, .* got 'model\.tflite'"):
        load_backend(tmp_path / "model.tflite")
