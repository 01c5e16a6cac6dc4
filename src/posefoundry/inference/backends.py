"""Runtimes behind one interface: PyTorch, ONNX Runtime and TensorRT."""

import copy
import importlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json
from posefoundry.machine import cpu_name
from posefoundry.models import ModelInfo, PoseModel, load_model, needs_nms
from posefoundry.models.weights import CHECKPOINT_SUFFIXES

RUNTIMES = {".onnx": "onnxruntime", ".engine": "tensorrt"}  # by an exported model's suffix

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TENSORRT_PLAN_TAG = b"ftrt"  # how every serialised engine begins: 0x74727466, little-endian
MIN_TENSORRT_MAJOR = 10


class Backend(Protocol):
    """A model in a runtime.

    Attributes:
        info: What its outputs mean.
        device_name: What it runs on, for reports.
    """

    info: ModelInfo
    device_name: str

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Maps images (B, 3, H, W) float32, RGB in 0..1, to decoded outputs (B, 4 + n_classes + K*V, A) float32."""
        ...


class TorchBackend:
    """PyTorch on CPU or CUDA, with the BatchNorms folded in and channels last.

    Args:
        model: Copied; the caller's stays as it is.
        info: What its outputs mean; of two heads, it tells which one is used.
        device: `auto` (CUDA if there is one), `cpu`, `cuda`, `cuda:1`...
        precision: `float32`, `bfloat16` or `float16`; the convolutions that write pixels stay in float32.
        threads: CPU threads of PyTorch in this process; 0 leaves them as they are.

    Raises:
        PosefoundryError: The device or the precision is not to be had.
    """

    def __init__(
        self, model: PoseModel, info: ModelInfo, *, device: str = "auto", precision: str = "float32", threads: int = 0
    ) -> None:
        if precision not in PRECISIONS:
            raise PosefoundryError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
        self.info = info
        self.device = _torch_device(device)
        self.device_name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name()
        if threads:
            torch.set_num_threads(threads)
        self._dtype = PRECISIONS[precision]
        fused = copy.deepcopy(model).to(self.device)
        fused.head.use(end2end=info.end2end)
        fused.fuse().requires_grad_(False)
        if self._dtype != torch.float32:
            fused.to_reduced_precision(self._dtype)
        self._model = fused.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """See `Backend.infer`.

        Raises:
            PosefoundryError: The batch is too large for the GPU.
        """
        # TF32, PyTorch's default for convolutions on NVIDIA GPUs, would cost float32 its digits. `flags` resets what it
        # is not told, and switches cuDNN off unless told otherwise.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            try:
                images = torch.from_numpy(batch).to(self.device).to(self._dtype, memory_format=torch.channels_last)
                return self._model(images).cpu().numpy()
            except torch.OutOfMemoryError as error:
                raise PosefoundryError(
                    f"{self.device_name}: too little memory for a batch of shape {batch.shape}. Lower the batch size "
                    f"or image_size_px. PyTorch says: {error}"
                ) from None


class OnnxBackend:
    """ONNX Runtime, on CUDA where its CUDA build is installed.

    Args:
        path: An ONNX file with the model's description in its metadata.
        device: `auto`, `cpu`, `cuda`, `cuda:1`...
        threads: CPU threads; 0 lets the runtime choose.

    Raises:
        PosefoundryError: The file is missing, no ONNX model or not described, or the device is not to be had.
    """

    def __init__(self, path: Path, *, device: str = "auto", threads: int = 0) -> None:
        import onnxruntime

        _require_file(path, "an ONNX model")
        providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
        has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        if device.startswith("cuda") and not has_cuda:
            raise PosefoundryError(
                f"{path}: expected ONNX Runtime with CUDA for device {device!r}, got a build without it. "
                "Install onnxruntime-gpu in its place, or use the device cpu."
            )
        if has_cuda and device != "cpu":
            # TF32, its default, would cost float32 its digits.
            options_of_cuda = {"device_id": int(device.partition(":")[2] or 0), "use_tf32": 0}
            providers.insert(0, ("CUDAExecutionProvider", options_of_cuda))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # the runtime has a class of its own for each fault, without a common base
            raise PosefoundryError(f"{path}: expected a model that ONNX Runtime can load, got: {error}") from None
        self.info = info_from_metadata(self._session.get_modelmeta().custom_metadata_map, path)
        on_cuda = self._session.get_providers()[0] == "CUDAExecutionProvider"
        if device.startswith("cuda") and not on_cuda:  # the runtime falls back to the CPU without a word
            raise PosefoundryError(
                f"{path}: expected ONNX Runtime to run on {device!r}, it could not: there is no such GPU, or CUDA and "
                "cuDNN are not of the versions that onnxruntime-gpu was built for. Use the device cpu or auto."
            )
        self.device_name = "CUDA" if on_cuda else cpu_name()
        self._input_name = self._session.get_inputs()[0].name

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """See `Backend.infer`."""
        return self._session.run(None, {self._input_name: batch})[0]


class TensorRtBackend:
    """A TensorRT engine (10 or 11) on an NVIDIA GPU, with PyTorch's CUDA tensors as its buffers.

    GPU, package and the engine's header are checked before the runtime is touched, because it ends the process where
    they are wrong.

    Args:
        path: The engine; its description is the JSON beside it.
        device: `auto`, `cuda` or `cuda:1`...

    Raises:
        PosefoundryError: Something is missing, or the engine was built for another GPU or version.
    """

    def __init__(self, path: Path, *, device: str = "auto") -> None:
        plan = _read_plan(path)
        self.device = _torch_device(device)
        if self.device.type != "cuda" or torch.version.cuda is None:
            raise PosefoundryError(
                f"{path}: expected an NVIDIA GPU that PyTorch can use, which a TensorRT engine needs, found none. "
                "Use the ONNX file on this machine."
            )
        trt = _import_tensorrt(path)
        self.info = info_from_metadata(read_json(path.with_suffix(".json")), path)
        self.device_name = torch.cuda.get_device_name(self.device)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        with torch.cuda.device(self.device):
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise PosefoundryError(
                    f"{path}: expected an engine for TensorRT {trt.__version__} on {self.device_name}, got one built "
                    "for another version or GPU. Export it again on this machine."
                )
            self._context = self._engine.create_execution_context()
            self._stream = torch.cuda.Stream(self.device)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._input_name = next(name for name in names if modes[name] == trt.TensorIOMode.INPUT)
        self._output_name = next(name for name in names if modes[name] == trt.TensorIOMode.OUTPUT)
        types = {self._engine.get_tensor_dtype(name) for name in (self._input_name, self._output_name)}
        if types != {trt.float32}:
            raise PosefoundryError(f"{path}: expected an engine with float32 input and output, got {types}.")
        self._largest_shape = tuple(self._engine.get_tensor_profile_shape(self._input_name, 0)[2])

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """See `Backend.infer`. A batch above the engine's largest is run in parts."""
        if any(side > most for side, most in zip(batch.shape[2:], self._largest_shape[2:], strict=True)):
            raise PosefoundryError(
                f"Expected images up to {tuple(self._largest_shape[2:])} px, which the engine was built for, got "
                f"{batch.shape[2:]}. Lower image_size_px or export the engine again."
            )
        step = self._largest_shape[0]
        return np.concatenate([self._run(batch[start : start + step]) for start in range(0, len(batch), step)])

    def _run(self, batch: np.ndarray) -> np.ndarray:
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            images = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device)
            if not self._context.set_input_shape(self._input_name, tuple(images.shape)):
                raise PosefoundryError(
                    f"Expected a batch of a shape that the engine was built for, got {batch.shape}. Export it again."
                )
            decoded = torch.empty(tuple(self._context.get_tensor_shape(self._output_name)), device=self.device)
            self._context.set_tensor_address(self._input_name, images.data_ptr())
            self._context.set_tensor_address(self._output_name, decoded.data_ptr())
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise PosefoundryError(
                    f"Expected TensorRT to run a batch of shape {batch.shape}, it reported a failure."
                )
            self._stream.synchronize()
            return decoded.cpu().numpy()


def runtime_of(path: Path | None) -> str:
    """Returns what runs a model file: that of `RUNTIMES`, or `pytorch` for weights and a model without a file."""
    return RUNTIMES.get(path.suffix, "pytorch") if path else "pytorch"


def load_backend(
    path: Path, device: str = "auto", threads: int = 0, precision: str = "float32", end2end: bool | None = None
) -> Backend:
    """Opens weights (`.safetensors`, `.pt`), an ONNX model (`.onnx`) or a TensorRT engine (`.engine`).

    Args:
        path: The suffix decides the runtime.
        device: `auto`, `cpu`, `cuda`...
        threads: CPU threads; 0 leaves the choice to the runtime.
        precision: Of weights; an ONNX model or an engine has its own from its export.
        end2end: Of weights with two heads, whether to use the one without NMS; None: as the file says. An ONNX model
            or an engine holds the head that it was exported with.

    Raises:
        PosefoundryError: The file cannot be opened here; the message says what is missing.
    """
    match path.suffix:
        case ".onnx":
            return with_head(OnnxBackend(path, device=device, threads=threads), end2end, path)
        case ".engine":
            return with_head(TensorRtBackend(path, device=device), end2end, path)
        case ".safetensors" | ".pt" | ".pth":
            model, info = load_model(path, end2end=end2end)
            return TorchBackend(model, info, device=device, precision=precision, threads=threads)
    known = (".safetensors", *CHECKPOINT_SUFFIXES, *RUNTIMES)
    raise PosefoundryError(f"{path}: expected a model file ({', '.join(known)}), got {path.name!r}.")


def with_head(backend: Backend, end2end: bool | None, path: Path) -> Backend:
    """Returns the runtime of an exported model if it has the head asked for; None asks for either.

    Raises:
        PosefoundryError: It was exported with the other one.
    """
    has_both = not needs_nms(backend.info.architecture)
    if has_both and end2end is not None and end2end != backend.info.end2end:
        raise PosefoundryError(
            f"{path}: expected a model exported with end2end={end2end}, got one with end2end={backend.info.end2end}. "
            "Export it again, or use the weights."
        )
    return backend


def info_from_metadata(metadata: Mapping[str, str], path: Path) -> ModelInfo:
    """Reads a model's description from an artifact's metadata: the fields of `ModelInfo.to_dict`, each as JSON.

    Raises:
        PosefoundryError: The description is missing or not proper.
    """
    fields: dict[str, Any] = {}
    for name, value in metadata.items():
        try:
            fields[name] = json.loads(value)
        except (json.JSONDecodeError, TypeError):  # plain text, such as a name
            fields[name] = value
    try:
        return ModelInfo.from_dict(fields)
    except PosefoundryError as error:
        raise PosefoundryError(f"{path}: {error} Export the model again with posefoundry.") from None


def _torch_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise PosefoundryError(f"device must be auto, cpu or cuda, got {device!r}.") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise PosefoundryError(
            f"Expected a GPU for device {device!r}, found {torch.cuda.device_count()} that PyTorch can use. "
            "Use auto or cpu."
        )
    return found


def _require_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise PosefoundryError(f"{path}: expected {what}, found no file.")


def _read_plan(path: Path) -> bytes:
    _require_file(path, "a TensorRT engine")
    plan = path.read_bytes()
    if not plan.startswith(TENSORRT_PLAN_TAG):
        raise PosefoundryError(f"{path}: expected a TensorRT engine, got a file that does not begin like one.")
    return plan


def _import_tensorrt(path: Path) -> Any:
    if importlib.util.find_spec("tensorrt") is None:
        raise PosefoundryError(
            f"{path}: expected the package tensorrt, which is not installed. Install posefoundry[tensorrt], or use the "
            "ONNX file."
        )
    try:
        trt = importlib.import_module("tensorrt")
        major = int(trt.__version__.split(".")[0])
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise PosefoundryError(f"{path}: expected the package tensorrt to load, got: {error}.") from None
    if major < MIN_TENSORRT_MAJOR:
        raise PosefoundryError(f"{path}: expected TensorRT {MIN_TENSORRT_MAJOR} or later, got {trt.__version__}.")
    return trt
