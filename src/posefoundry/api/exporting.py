"""`YOLO.export`: one file for one runtime, beside the weights it was made from unless they are the pipeline's."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from posefoundry.api.arguments import ExportArguments
from posefoundry.errors import PosefoundryError
from posefoundry.files import sha256_of_file

if TYPE_CHECKING:
    from posefoundry.api.yolo import YOLO


def export(yolo: "YOLO", arguments: ExportArguments) -> Path:
    """See `YOLO.export`."""
    import torch

    from posefoundry.config import TensorRtExport
    from posefoundry.export.onnx import artifact_metadata, export_onnx
    from posefoundry.export.tensorrt import build_engine, profile_shapes, reason_to_skip

    if arguments.format == "engine" and (reason := reason_to_skip(TensorRtExport())):
        raise PosefoundryError(f"export: a TensorRT engine cannot be made here: {reason}. Use format=onnx.")
    model, info = yolo.model, yolo.with_head(arguments.end2end)
    if arguments.imgsz is not None:
        info = replace(info, image_size_px=arguments.imgsz)
    weights = yolo._opened.path
    digest = sha256_of_file(weights) if weights is not None else ""
    target = _target(yolo, arguments.format)
    dtype = torch.float16 if arguments.half else torch.float32
    with tempfile.TemporaryDirectory() as scratch:
        graph = target if arguments.format == "onnx" else Path(scratch) / "model.onnx"
        export_onnx(model, info, graph, opset=arguments.opset, weights_sha256=digest, dtype=dtype)
        if arguments.format == "engine":
            shapes = profile_shapes(info, max_batch_size=arguments.batch)
            build_engine(graph, target, shapes, artifact_metadata(info, weights_sha256=digest))
    return target


def _target(yolo: "YOLO", suffix: str) -> Path:
    opened = yolo._opened
    # What the registry lent lies in a folder that goes away; a new model has none.
    folder = opened.path.parent if opened.path is not None and opened.kept is None else Path()
    if _is_made_by_pipeline(folder):
        folder = Path()
    return folder / f"{opened.called}.{suffix}"


def _is_made_by_pipeline(folder: Path) -> bool:
    """Tells whether the folder is an output of the pipeline; DVC deletes there whatever the pipeline did not make."""
    from posefoundry.registry.lineage import dvc_hashes
    from posefoundry.registry.store import project_root

    root = project_root()
    return any(folder.resolve().is_relative_to((root / output).resolve()) for output in dvc_hashes())
