"""`YOLO`: a pose model with the verbs that people know."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from torch import nn

from posefoundry.api.arguments import (
    DeviceName,
    ExportArguments,
    PredictArguments,
    TrainArguments,
    ValArguments,
    device_name,
    parse,
)
from posefoundry.api.metrics import PoseMetrics
from posefoundry.api.opening import Opened, open_model
from posefoundry.api.results import Results
from posefoundry.errors import PosefoundryError
from posefoundry.inference.backends import Backend, TorchBackend, load_backend, with_head
from posefoundry.inference.predictor import Predictor
from posefoundry.models import ModelInfo, PoseModel, needs_nms, transfer_weights
from posefoundry.models.profile import Profile, profile_model
from posefoundry.training.plan import PLAN


class YOLO:
    """A YOLO pose model.

    Example:
        >>> model = YOLO("yolo26n-pose.yaml")  # new
        >>> model = YOLO("best.safetensors")  # trained here; or a published .pt, an .onnx, an .engine
        >>> model = YOLO("models:/posefoundry@production")  # from the registry
        >>> results = model("street.jpg")
        >>> results[0].keypoints.xy

    Args:
        model: A name, a file or a registered version.
        task: Only `pose`.
        verbose: Prints what `load` and `info` have to say.

    Raises:
        PosefoundryError: There is no such model, or its file cannot be used.
    """

    task = "pose"

    def __init__(self, model: str | Path, task: str | None = None, verbose: bool = True) -> None:
        if task not in (None, "pose"):
            raise PosefoundryError(f"task: expected 'pose', the only task of posefoundry, got {task!r}.")
        try:
            self._opened: Opened = open_model(model)
        except PosefoundryError as error:
            if not (Path(model).parent.parent / PLAN).is_file():
                raise
            raise PosefoundryError(
                f"{error} Their training was cut short. Go on with it: posefoundry train model={model} resume=true"
            ) from None
        self._verbose = verbose
        self._backend: tuple[tuple[Any, ...], Backend] | None = None

    # What it is

    @property
    def model(self) -> PoseModel:
        """The PyTorch module; in evaluation mode it returns the decoded tensor (B, 4 + classes + values, anchors).

        Raises:
            PosefoundryError: The model is an exported artifact, which has none.
        """
        if self._opened.model is None:
            raise PosefoundryError(
                f"{self._opened.path}: expected weights for this, got an exported model. Use the .safetensors or .pt "
                "file it was made from."
            )
        return self._opened.model

    @property
    def details(self) -> ModelInfo:
        """What the model's outputs mean."""
        return self._opened.info

    @property
    def names(self) -> dict[int, str]:
        """Class index -> name."""
        return dict(enumerate(self.details.class_names))

    @property
    def ckpt_path(self) -> str | None:
        """The file that the model came from, if any."""
        return str(self._opened.path) if self._opened.path else None

    def info(self, detailed: bool = False, verbose: bool = True) -> tuple[int, int, int, float]:
        """Counts layers, parameters, gradients, and GFLOPs at the model's image size.

        Args:
            detailed: Also prints each tensor's name and shape.
            verbose: Prints the summary.

        Returns:
            Layers, parameters, parameters that training changes, GFLOPs. Layers and parameters are the module's as it
            is; the operations are those of the model in use, fused.
        """
        from posefoundry.models.profile import count_layers

        model, info = self.model, self.details
        parameters = sum(parameter.numel() for parameter in model.parameters())
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        counts = count_layers(model), parameters, trained, self.profile().gflops
        if verbose:
            print(
                f"{info.architecture}: {counts[0]} layers, {parameters:,} parameters, {counts[3]:.1f} GFLOPs at "
                f"{info.image_size_px} px; {info.n_classes} classes ({', '.join(info.class_names[:5])}), "
                f"{info.kpt_shape[0]} keypoints of {info.kpt_shape[1]} values"
            )
        if detailed:
            for name, tensor in model.state_dict().items():
                print(f"{name:48} {list(tensor.shape)}")
        return counts

    def profile(self) -> Profile:
        """Counts the operations of the model in use."""
        info = self.details
        return profile_model(
            info.architecture,
            n_classes=info.n_classes,
            kpt_shape=info.kpt_shape,
            image_size_px=-(-info.image_size_px // info.stride_px) * info.stride_px,
        )

    # Weights

    def load(self, weights: str | Path) -> Self:
        """Copies the tensors of other weights that fit, and says which did not."""
        path = Path(weights)
        report = transfer_weights(self.model, path)
        if self._verbose:
            print(report)
        self._opened = replace(self._opened, path=path, called=path.stem)
        return self

    def save(self, filename: str | Path = "saved_model.safetensors") -> None:
        """Writes the weights as safetensors, with their description as JSON beside them."""
        from posefoundry.models import save_weights

        path = Path(filename)
        if path.suffix != ".safetensors":
            raise PosefoundryError(f"{path}: expected a name that ends in .safetensors, got {path.name!r}.")
        if not any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules()):
            raise PosefoundryError(
                f"{path}: expected a model with its BatchNorms, got a fused one. Save before fuse()."
            )
        extra = {"data": self._opened.data} if self._opened.data else {}
        save_weights(path, self.model.state_dict(), self.details, extra)

    def fuse(self) -> Self:
        """Folds each BatchNorm into its convolution; the weights can then no longer be saved.

        `predict`, `val` and `export` do so on a copy by themselves, and `train` starts from the file.
        """
        self.model.fuse()
        return self

    # Verbs

    def __call__(self, source: Any = None, *, stream: bool = False, **arguments: Any) -> Any:
        """Same as `predict`."""
        return self.predict(source, stream=stream, **arguments)

    def predict(
        self, source: Any = None, *, stream: bool = False, **arguments: Any
    ) -> list[Results] | Iterator[Results]:
        """Finds the persons of each image of a source, see `open_source` and `PredictArguments`.

        A file that cannot be read is named on stderr and skipped where there are others.

        Args:
            source: A file, folder, glob, address, video, camera's number, array, tensor, PIL image, or a list of them.
            stream: Returns an iterator that reads as it goes, instead of a list.
            **arguments: As in `PredictArguments`.

        Raises:
            PosefoundryError: An argument is wrong, or nothing of the source can be read.
        """
        from posefoundry.api.predicting import predict

        results = predict(self, source, parse(PredictArguments, arguments), stream=stream)
        return results if stream else list(results)

    def val(self, data: str | Path | None = None, **arguments: Any) -> PoseMetrics:
        """Measures box AP and OKS AP on a data set, see `ValArguments`.

        Args:
            data: A dataset.yaml or a COCO file; by default what the model was trained on.
            **arguments: As in `ValArguments`.

        Raises:
            PosefoundryError: An argument is wrong, or the data cannot be read.
        """
        from posefoundry.api.validating import validate

        return validate(self, parse(ValArguments, arguments | ({} if data is None else {"data": data})))

    def train(self, **arguments: Any) -> PoseMetrics:
        """Trains, keeps the best weights as this model, and returns their metrics; see `TrainArguments`.

        Raises:
            PosefoundryError: An argument is wrong, the data cannot be used, or the training diverged.
        """
        from posefoundry.api.training import train

        best, metrics = train(self, parse(TrainArguments, arguments))
        self._opened, self._backend = open_model(best), None
        return metrics

    def export(self, **arguments: Any) -> str:
        """Writes the model as ONNX or a TensorRT engine and returns where; see `ExportArguments`.

        It goes beside its weights; where these are an output of the pipeline, into the working directory.

        Raises:
            PosefoundryError: An argument is wrong, or the format cannot be made here.
        """
        from posefoundry.api.exporting import export

        return str(export(self, parse(ExportArguments, arguments)))

    def predictor(
        self, device: DeviceName = None, half: bool = False, end2end: bool | None = None, **settings: Any
    ) -> Predictor:
        """Returns the Predictor behind `predict` and `val`, over a runtime that is kept from call to call.

        Raises:
            PosefoundryError: The device is not to be had, a setting is impossible, or see `with_head`.
        """
        return Predictor(self._backend_on(device_name(device), half, self.with_head(end2end)), **settings)

    def with_head(self, end2end: bool | None) -> ModelInfo:
        """Returns what the outputs mean when the head asked for is used; None is the one that the weights state.

        Raises:
            PosefoundryError: The family has one head, which needs NMS.
        """
        info = self.details
        if end2end and needs_nms(info.architecture):
            raise PosefoundryError(
                f"end2end: expected a YOLO26 model, which has a head that needs no NMS, got {info.architecture}, "
                "whose only head needs it. Leave end2end out."
            )
        return info if end2end is None or needs_nms(info.architecture) else replace(info, end2end=end2end)

    def _backend_on(self, device: str, half: bool, info: ModelInfo) -> Backend:
        model = self._opened.model
        # PyTorch counts each change of a tensor in place, so that weights changed by hand are seen.
        changes = sum(tensor._version for tensor in model.state_dict(keep_vars=True).values()) if model else 0
        key = (device, half, info.end2end, changes)
        if self._backend is None or self._backend[0] != key:
            self._backend = (key, self._open_backend(device, half, info))
        return self._backend[1]

    def _open_backend(self, device: str, half: bool, info: ModelInfo) -> Backend:
        opened = self._opened
        if opened.model is not None:
            precision = "float16" if half else "float32"
            return TorchBackend(opened.model, info, device=device, precision=precision)
        if half:
            raise PosefoundryError(
                f"{opened.path}: the precision of an exported model is fixed; export it with half=True."
            )
        assert opened.path is not None  # an exported model is a file
        if device == "auto" and opened.backend is not None:
            return with_head(opened.backend, info.end2end, opened.path)
        return load_backend(opened.path, device=device, end2end=info.end2end)
