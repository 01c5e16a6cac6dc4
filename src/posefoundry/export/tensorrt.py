"""ONNX to a TensorRT engine, where an NVIDIA GPU and the tensorrt package are present.

Written against TensorRT 10 and 11. Networks are strongly typed (in 11 there is no other kind), so the precision is
that of the ONNX graph and no builder flag chooses it. An engine runs on the kind of GPU and the TensorRT version that
built it.
"""

import importlib
import importlib.util
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from posefoundry.config import TensorRtExport
from posefoundry.errors import PosefoundryError
from posefoundry.export.onnx import INPUT_NAME
from posefoundry.files import write_bytes_atomic, write_json_atomic
from posefoundry.models import ModelInfo

MIN_TENSORRT_MAJOR = 10


def reason_to_skip(settings: TensorRtExport) -> str | None:
    """Says why no engine can or shall be built here, or None if one will be.

    The package is imported only behind a GPU: without one, importing or using it can end the process.
    """
    if settings.build == "never":
        return "export.tensorrt.build is never"
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "no NVIDIA GPU that PyTorch can use"
    if importlib.util.find_spec("tensorrt") is None:
        return "the package tensorrt is not installed; install posefoundry[tensorrt]"
    try:
        version = importlib.import_module("tensorrt").__version__
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"the package tensorrt does not load: {error}"
    if int(version.split(".")[0]) < MIN_TENSORRT_MAJOR:
        return f"TensorRT {version} is too old; {MIN_TENSORRT_MAJOR} or later is needed"
    return None


@dataclass(frozen=True)
class ProfileShapes:
    """The input shapes (B, 3, H, W) an engine accepts, from `smallest` to `largest`, and the one it is tuned for."""

    smallest: tuple[int, int, int, int]
    tuned: tuple[int, int, int, int]
    largest: tuple[int, int, int, int]


def profile_shapes(info: ModelInfo, *, max_batch_size: int) -> ProfileShapes:
    """Returns the shapes that letterboxing to the model's input size can produce, in batches up to `max_batch_size`."""
    side = -(-info.image_size_px // info.stride_px) * info.stride_px
    full = (max_batch_size, 3, side, side)
    return ProfileShapes(smallest=(1, 3, info.stride_px, info.stride_px), tuned=full, largest=full)


def build_engine(onnx_path: Path, path: Path, shapes: ProfileShapes, metadata: dict[str, str]) -> None:
    """Builds an engine from an ONNX file and writes it, with its metadata beside it as JSON.

    Args:
        onnx_path: Decides the precision by the types in its graph.
        path: The `.engine` file; its metadata goes to the same name with `.json`.
        shapes: What the engine must accept.
        metadata: As in the ONNX file; the engine format has no room of its own for it.

    Raises:
        PosefoundryError: TensorRT cannot read the graph or build it; its own messages are passed on.
    """
    import tensorrt as trt

    logger = _logger(trt)
    builder = trt.Builder(logger)
    # Needed in TensorRT 10; in 11 accepted and ignored, every network being strongly typed there.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_path.read_bytes()):
        faults = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise PosefoundryError(
            f"{onnx_path}: expected a graph that TensorRT {trt.__version__} can read, got: {faults}. "
            "Set export.tensorrt.build to never to export without an engine."
        )
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; float32 shall mean all its digits
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT_NAME, shapes.smallest, shapes.tuned, shapes.largest)
    config.add_optimization_profile(profile)
    cache_path = _timing_cache_path(trt.__version__)
    _read_timing_cache(config, cache_path)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PosefoundryError(
            f"{onnx_path}: expected TensorRT {trt.__version__} to build an engine for inputs up to {shapes.largest}, "
            f"got: {'; '.join(logger.faults) or 'no engine and no message'}. A smaller export.tensorrt.max_batch_size "
            "needs less GPU memory; export.tensorrt.build: never exports without an engine."
        )
    write_json_atomic(path.with_suffix(".json"), metadata)
    write_bytes_atomic(path, bytes(plan))
    with suppress(OSError):  # timings only save time: a home that cannot be written must not cost the engine
        write_bytes_atomic(cache_path, bytes(config.get_timing_cache().serialize()))


def _logger(trt: Any) -> Any:
    """Returns a TensorRT logger that keeps errors for our own message instead of printing everything."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.faults: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.faults.append(message)

    return Logger()


def _timing_cache_path(version: str) -> Path:
    """Returns where kernel timings of this GPU and version are kept: with them a second build takes seconds."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    gpu = torch.cuda.get_device_name().replace(" ", "-").replace("/", "-")
    return root / "posefoundry" / f"tensorrt-{version}-{gpu}.timings"


def _read_timing_cache(config: Any, path: Path) -> None:
    """Attaches the kept timings, or none where TensorRT finds that they were taken elsewhere."""
    kept = b""
    with suppress(OSError):
        kept = path.read_bytes()
    if not config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
