"""All artifacts of one model, each proven against PyTorch on real images before it may ship."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from posefoundry.config import Export
from posefoundry.errors import PosefoundryError
from posefoundry.export.onnx import artifact_metadata, export_onnx
from posefoundry.export.parity import Parity, measure_parity, require_parity
from posefoundry.export.tensorrt import build_engine, profile_shapes, reason_to_skip
from posefoundry.files import sha256_of_file
from posefoundry.inference.backends import Backend, load_backend
from posefoundry.inference.images import read_image_bgr
from posefoundry.inference.predictor import Predictor
from posefoundry.models import ModelInfo, PoseModel, load_model

ONNX_NAME = "model.onnx"
TENSORRT_NAME = "model.engine"
PARITY_BATCH_SIZES = (1, 2)


def export_artifacts(settings: Export, weights: Path, image_paths: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Exports a model in every format that can be made here, and compares each with PyTorch.

    Args:
        settings: Formats, precisions and limits.
        weights: As `load_model` reads them.
        image_paths: Real images to compare on; `settings.onnx.parity_images` of them are used, evenly chosen.
        folder: Where the artifacts go.

    Returns:
        `artifacts`: format, file, bytes, sha256, precision, parity...; `skipped`: format and reason.

    Raises:
        PosefoundryError: There is no image to compare on, a format's tool fails, or an artifact strays from PyTorch.
    """
    if not image_paths:
        raise PosefoundryError("Expected test images to compare the artifacts with PyTorch on, got none.")
    model, info = load_model(weights)
    subject = _Subject(model, info, sha256_of_file(weights), _choose(image_paths, settings.onnx.parity_images))
    artifacts = [_export_onnx(settings, subject, folder / ONNX_NAME)]
    skipped = []
    reason = reason_to_skip(settings.tensorrt)
    if reason is None:
        artifacts.append(_export_tensorrt(settings, subject, folder / TENSORRT_NAME))
    else:
        skipped.append({"format": "tensorrt", "reason": reason})
    return {"artifacts": artifacts, "skipped": skipped}


@dataclass(frozen=True)
class _Subject:
    """What is exported, and the images it is compared on."""

    model: PoseModel
    info: ModelInfo
    weights_sha256: str
    image_paths: list[Path]


def _export_onnx(settings: Export, subject: _Subject, path: Path) -> dict[str, Any]:
    opset = settings.onnx.opset
    export_onnx(subject.model, subject.info, path, opset=opset, weights_sha256=subject.weights_sha256)
    parity = _compare(subject, load_backend(path, device="cpu"))
    require_parity(
        parity,
        max_error_px=settings.onnx.max_parity_error_px,
        artifact=path.name,
        setting="export.onnx.max_parity_error_px",
    )
    return {"format": "onnx", **_file_facts(path), "opset": opset, "precision": "float32", "parity": parity.to_dict()}


def _export_tensorrt(settings: Export, subject: _Subject, path: Path) -> dict[str, Any]:
    precision = settings.tensorrt.precision
    shapes = profile_shapes(subject.info, max_batch_size=settings.tensorrt.max_batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / ONNX_NAME
        export_onnx(
            subject.model,
            subject.info,
            graph,
            opset=settings.onnx.opset,
            weights_sha256=subject.weights_sha256,
            dtype=getattr(torch, precision),
        )
        build_engine(graph, path, shapes, artifact_metadata(subject.info, weights_sha256=subject.weights_sha256))
    parity = _compare(subject, load_backend(path))
    require_parity(
        parity,
        max_error_px=settings.tensorrt.max_parity_error_px,
        artifact=path.name,
        setting="export.tensorrt.max_parity_error_px",
    )
    profile = {"smallest": shapes.smallest, "tuned": shapes.tuned, "largest": shapes.largest}
    return {
        "format": "tensorrt", **_file_facts(path), "precision": precision, "profile": profile,
        "parity": parity.to_dict(),
    }  # fmt: skip


def _compare(subject: _Subject, candidate: Backend) -> Parity:
    info = subject.info

    def pytorch(batch: np.ndarray) -> np.ndarray:  # the model as trained and judged, before any fusing
        with torch.inference_mode():
            return cast(torch.Tensor, subject.model(torch.from_numpy(batch))).numpy()

    return measure_parity(
        pytorch,
        candidate.infer,
        _batches(subject.image_paths, candidate),
        n_classes=info.n_classes,
        kpt_shape=info.kpt_shape,
    )


def _batches(image_paths: list[Path], backend: Backend) -> Iterator[np.ndarray]:
    """Yields the images pre-processed as the Predictor does it, at two input sizes and in two batch sizes."""
    images = [read_image_bgr(path) for path in image_paths]
    images *= 2 if len(images) == 1 else 1
    stride_px, full_px = backend.info.stride_px, backend.info.image_size_px
    smaller_px = max(full_px * 3 // 4 // stride_px, 1) * stride_px
    for image_size_px in (full_px, smaller_px):
        predictor = Predictor(backend, image_size_px=image_size_px)
        for batch_size in PARITY_BATCH_SIZES:
            for start in range(0, len(images), batch_size):
                yield predictor.preprocess(images[start : start + batch_size])[0]


def _choose(paths: Sequence[Path], count: int) -> list[Path]:
    """Returns `count` of the paths, or all of fewer, evenly spread over them."""
    count = min(count, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def _file_facts(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
