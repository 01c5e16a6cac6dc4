import numpy as np
import onnx
import pytest
import torch

import posefoundry
from posefoundry.errors import PosefoundryError
from posefoundry.export.parity import measure_parity, require_parity
from posefoundry.inference.backends import OnnxBackend

SHAPES_BHW = [(1, 32, 32), (1, 64, 160), (2, 160, 96), (5, 64, 64)]


def pytorch(model):
    def infer(batch):
        with torch.inference_mode():
            return model(torch.from_numpy(batch)).numpy()

    return infer


def random_batches(shapes=SHAPES_BHW):
    rng = np.random.default_rng(0)
    return [rng.random((batch, 3, height, width), dtype=np.float32) for batch, height, width in shapes]


def parity_of(exported, path=None, batches=None):
    candidate = OnnxBackend(path or exported.path, device="cpu", threads=1)
    return measure_parity(
        pytorch(exported.model), candidate.infer, batches or random_batches(), n_classes=1, kpt_shape=(17, 3)
    )


def test_every_batch_and_size_equals_pytorch(exported):
    parity = parity_of(exported)
    assert parity.input_shapes == tuple(f"{b}x3x{h}x{w}" for b, h, w in SHAPES_BHW)
    # The two differ by the order of float32 sums alone: 0.001 px was seen, of coordinates up to 90 px.
    assert parity.max_error_px_all < 0.01
    assert parity.max_error_score_all < 1e-4


def test_the_file_stands_alone_and_passes_the_checker(exported):
    onnx.checker.check_model(exported.path, full_check=True)
    assert [path.name for path in exported.path.parent.iterdir()] == ["model.onnx"]
    proto = onnx.load(exported.path)
    assert [(o.domain, o.version) for o in proto.opset_import if o.domain == ""] == [("", 18)]
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert shapes == {"images": ["batch", 3, "height", "width"], "predictions": ["batch", 56, "anchors"]}
    assert {node.op_type for node in proto.graph.node}.isdisjoint({"BatchNormalization"})


def test_the_description_comes_back_from_the_metadata(exported):
    assert OnnxBackend(exported.path, device="cpu").info == exported.info
    metadata = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}
    assert metadata["architecture"] == "yolov8n-pose"
    assert metadata["weights_sha256"] == "ab" * 32
    assert metadata["posefoundry_version"] == posefoundry.__version__


def test_nothing_of_the_machine_is_in_the_file(exported):
    assert posefoundry.__path__[0].encode() not in exported.path.read_bytes()
    assert b"site-packages" not in exported.path.read_bytes()


def test_a_changed_weight_fails_the_comparison(exported, tmp_path):
    proto = onnx.load(exported.path)
    weight = max(proto.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    values = onnx.numpy_helper.to_array(weight).copy()
    values += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(proto, tmp_path / "changed.onnx")
    parity = parity_of(exported, tmp_path / "changed.onnx", random_batches([(1, 96, 96)]))
    with pytest.raises(PosefoundryError, match=r"expected predictions within 0\.05 px"):
        require_parity(parity, max_error_px=0.05, artifact="changed.onnx", setting="export.onnx.max_parity_error_px")


@pytest.fixture(scope="module")
def half(export_model):
    return export_model("yolov8n-pose", dtype=torch.float16)


def test_float16_keeps_float32_at_its_ends_and_stays_close(half):
    parity = parity_of(half)
    assert 0.01 < parity.max_error_px < 2.0  # 0.6 px was seen
    assert parity.max_error_score < 5e-3


def test_float16_holds_but_the_last_weights(half):
    proto = onnx.load(half.path)
    sizes = {onnx.TensorProto.FLOAT: 0, onnx.TensorProto.FLOAT16: 0}
    for tensor in proto.graph.initializer:
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += int(np.prod(tensor.dims))
    assert sizes[onnx.TensorProto.FLOAT16] > 50 * sizes[onnx.TensorProto.FLOAT] > 0
    [last] = [node for node in proto.graph.node if "predictions" in node.output]
    assert last.op_type != "Cast"  # decoded in float32, not rounded to it
    assert OnnxBackend(half.path, device="cpu").info == half.info
