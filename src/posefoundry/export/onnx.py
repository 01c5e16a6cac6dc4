"""PoseModel to ONNX: one self-describing file for any batch and any image size, with decoded output."""

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posefoundry import __version__
from posefoundry.files import write_bytes_atomic
from posefoundry.models import ModelInfo, PoseModel

INPUT_NAME = "images"
OUTPUT_NAME = "predictions"


def export_onnx(
    model: PoseModel,
    info: ModelInfo,
    path: Path,
    *,
    opset: int,
    weights_sha256: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes the model, fused for inference, as one ONNX file that the ONNX checker accepts.

    Input `images` (B, 3, H, W) float32, RGB in 0..1, H and W multiples of the stride; output `predictions`
    (B, 4 + n_classes + K*V, A) float32, decoded as by `PoseModel`. The file holds its weights, and in its metadata
    the `ModelInfo`, the product's version and the SHA-256 of the weights it was made from.

    Args:
        model: Left as it is.
        info: Travels in the file; of two heads, it tells which one is exported.
        path: The `.onnx` file, written whole or not at all.
        opset: ONNX operator set, 18 or later.
        weights_sha256: Fingerprint of the weights file that `model` was loaded from.
        dtype: What the graph computes in; input and output stay float32, and so do the last convolutions and the
            decoding, whose values are pixels: from 512 px on, float16 steps by half a pixel.
    """
    import onnx

    copied = copy.deepcopy(model).cpu()
    copied.head.use(end2end=info.end2end)
    network = _Network(copied, dtype).eval()
    proto = _trace(network, stride_px=max(model.strides), opset=opset)
    _strip_machine_details(proto)
    _name_dimensions(proto)
    onnx.helper.set_model_props(proto, artifact_metadata(info, weights_sha256=weights_sha256))
    onnx.checker.check_model(proto, full_check=True)
    write_bytes_atomic(path, proto.SerializeToString(deterministic=True))


def artifact_metadata(info: ModelInfo, *, weights_sha256: str) -> dict[str, str]:
    """Returns what an artifact says of itself: the fields of `ModelInfo`, each as text or JSON, and its origin."""
    fields = {**info.to_dict(), "weights_sha256": weights_sha256, "posefoundry_version": __version__}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


class _Network(nn.Module):
    """The fused model behind a cast, so that callers hand in float32 whatever it computes in."""

    def __init__(self, model: PoseModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.model = model.fuse()
        if dtype != torch.float32:
            self.model.to_reduced_precision(dtype)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.to(self.dtype))


def _trace(network: nn.Module, *, stride_px: int, opset: int) -> Any:
    """Returns the graph as an onnx.ModelProto.

    By torch.export rather than the older TorchScript tracer: it proves the graph for every batch and every multiple of
    the stride instead of recording one example, writes half as many nodes, and is the exporter that PyTorch maintains.
    """
    batch, height, width = (torch.export.Dim(name, min=1) for name in ("batch", "rows", "columns"))
    shapes = {"images": {0: batch, 2: stride_px * height, 3: stride_px * width}}
    example = torch.rand(
        2, 3, 2 * stride_px, 3 * stride_px
    )  # no two sizes alike, and none is 1, which would be baked in
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Hushes the exporter, which warns of torchvision's absence and of its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip_machine_details(proto: Any) -> None:
    """Drops the exporter's stack traces, which name this machine's folders and make equal models differ.

    The shapes noted for inner tensors go too: every runtime infers them, and they speak of the exporter's symbols.
    """
    graph = proto.graph
    del graph.value_info[:]
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""


def _name_dimensions(proto: Any) -> None:
    """Names the free dimensions in the field's words; the exporter writes formulas such as `32*rows`."""
    [images], [predictions] = proto.graph.input, proto.graph.output
    for value, names in ((images, {0: "batch", 2: "height", 3: "width"}), (predictions, {0: "batch", 2: "anchors"})):
        for axis, name in names.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
