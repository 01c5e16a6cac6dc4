"""The arguments of `train`, `val`, `predict` and `export`: the field's names, checked; none is ignored in silence."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from posefoundry.config import Evaluate, PckReference, PckThresholds, Section, Train
from posefoundry.errors import PosefoundryError
from posefoundry.params import describe_validation_error
from posefoundry.values import Fraction, PositiveFloat

Arguments = TypeVar("Arguments", bound="VerbArguments")
ImageSize = Annotated[int, Field(ge=1, le=20_000)]
DeviceName = str | int | list[int] | None


class VerbArguments(Section):
    """What every verb takes.

    Attributes:
        device: `cpu`, `cuda`, a GPU's number, or None for a GPU if there is one.
        project: Folder of the results, by default runs/pose.
        name: Name of the folder in it, by default the verb; a number is added where it exists.
        exist_ok: Writes into a folder that exists.
        verbose: Prints a summary and, on a terminal, a progress bar.
    """

    device: DeviceName = None
    project: Path = Path("runs/pose")
    name: Annotated[str, Field(min_length=1)] | None = None
    exist_ok: bool = False
    verbose: bool = True
    task: Literal["pose"] = "pose"

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, given: Any) -> Any:
        """Takes arguments of the field that posefoundry has no use for at the value that asks for nothing."""
        neutral = NEUTRAL.get(cls.__name__, {})
        if not isinstance(given, dict):
            return given
        for key, value in given.items():
            if key in neutral and value not in neutral[key]:
                raise ValueError(f"{key}: posefoundry does not do this; leave it out, or set it to {neutral[key][0]!r}")
        return {key: value for key, value in given.items() if key not in neutral}


class TrainArguments(VerbArguments):
    """Arguments of `train`; None is the default of `posefoundry.config.Train`, which is the published recipe.

    Attributes:
        resume: Goes on with the training whose `weights/last.safetensors` the model is; takes no other argument.
        device: Also several GPUs, as in "0,1" or [0, 1]: one process each, which share the batch.
        processes: On CPUs, how many share the cores and the batch.
    """

    resume: bool = False
    data: str | Path | None = None
    epochs: int | None = None
    batch: int | Literal["auto"] | None = None
    imgsz: ImageSize | None = None
    pretrained: bool | str | Path = True
    workers: int | Literal["auto"] | None = None
    processes: int | None = None
    seed: int | None = None
    optimizer: str | None = None
    lr0: float | None = None
    lrf: float | None = None
    cos_lr: bool | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    warmup_epochs: float | None = None
    amp: bool | None = None
    compile: bool | None = None
    cache: bool | Literal["ram"] | None = None
    box: float | None = None
    cls: float | None = None
    dfl: float | None = None
    pose: float | None = None
    kobj: float | None = None
    l1: float | None = None
    rle: float | None = None
    class_weights: dict[str, float] | None = None
    keypoint_weights: dict[str, float] | None = None
    hsv_h: float | None = None
    hsv_s: float | None = None
    hsv_v: float | None = None
    degrees: float | None = None
    translate: float | None = None
    scale: float | None = None
    shear: float | None = None
    perspective: Annotated[float, Field(ge=0)] | None = None
    fliplr: float | None = None
    flipud: float | None = None
    blur: float | None = None
    cutout: float | None = None
    mosaic: float | None = None
    mixup: float | None = None
    copy_paste: float | None = None
    multi_scale: bool | float | None = None
    close_mosaic: int | None = None
    ema_decay: float | None = None
    ema_ramp_updates: float | None = None
    gradient_clip_norm: float | None = None
    validate_every_epochs: int | None = None
    patience: int | None = None
    freeze: int | None = None
    freeze_batchnorm: bool | None = None
    sync_batchnorm: bool | None = None

    @model_validator(mode="after")
    def _resume_alone(self) -> Self:
        if self.resume and (others := self.model_fields_set - {"resume", "task"}):
            raise ValueError(f"resume: goes on with the arguments it began with; leave out {', '.join(sorted(others))}")
        return self

    def to_settings(self, model: str, weights: Path | None, stride_px: int) -> Train:
        """Returns the section `train` that these arguments mean.

        Args:
            model: The architecture's name.
            weights: What to start from.
            stride_px: The image size is rounded up to a multiple of it.

        Raises:
            PosefoundryError: A value is impossible; the message has the names of these arguments.
        """
        stated = self.model_dump(exclude_none=True)
        settings: dict[str, Any] = {"model": model, "weights": weights, **self._where()}
        for key, path in TRAIN_SETTINGS.items():
            if key in stated:
                section, _, name = path.rpartition(".")
                (settings.setdefault(section, {}) if section else settings)[name] = stated[key]
        if self.imgsz is not None:
            settings["image_size_px"] = -(-self.imgsz // stride_px) * stride_px
        if self.optimizer is not None:
            settings["optimizer"] = self.optimizer.lower()
        if self.optimizer == "auto":
            del settings["optimizer"]
        if self.cos_lr is not None:
            settings["schedule"] = "cosine" if self.cos_lr else "linear"
        if self.multi_scale is not None:
            fraction = FRACTION_OF_MULTI_SCALE if self.multi_scale is True else float(self.multi_scale)
            settings.setdefault("augment", {})["multi_scale_fraction"] = fraction
        if self.perspective is not None:
            half_side_px = settings.get("image_size_px", DEFAULTS.image_size_px) / 2
            settings.setdefault("augment", {})["perspective_fraction"] = self.perspective * half_side_px
        if self.amp is False:
            settings["precision"] = "float32"
        if self.cache is not None:
            settings["image_cache_gib"] = UNLIMITED_CACHE_GIB if self.cache else 0.0
        if self.warmup_epochs is None and (self.epochs or DEFAULTS.epochs) <= DEFAULTS.warmup_epochs:
            settings["warmup_epochs"] = (self.epochs or DEFAULTS.epochs) / 2
        try:
            return Train.model_validate(settings)
        except ValidationError as error:
            raise PosefoundryError(f"train: {_in_field_words(_describe(error, Train))}") from None

    def _where(self) -> dict[str, Any]:
        """Returns the settings `device` and `processes`, of which the latter may be stated besides."""
        gpus = gpu_numbers(self.device)
        if not gpus:
            device = device_name(self.device)
            if device not in ("auto", "cpu", "cuda"):
                raise PosefoundryError(f"train: device: expected cpu or GPU numbers, got {self.device!r}.")
            return {"device": device}
        if self.processes not in (None, len(gpus)):
            raise PosefoundryError(
                f"train: processes: expected one for each GPU of device={self.device}, got {self.processes}. Leave it "
                "out."
            )
        return {"device": "cuda", "processes": len(gpus)}


class ValArguments(VerbArguments):
    """Arguments of `val`.

    Attributes:
        data: As in `train`; by default what the model was trained on.
        split: `train`, `val` or `test`; by default that of the COCO file that `data` names, else `val`.
        imgsz: Long side of the model's input; by default what the model was trained at.
        end2end: Of YOLO26, False measures the one-to-many head with NMS; by default as the weights say.
        tags: A CSV file with a column `file_name` and a column a tag, by which to slice as well.
        pck_thresholds: Parts of a person's size within which a keypoint is right for PCK.
        pck_reference: What PCK takes for a person's size: the longer side of its `box`, or its `torso`.
        pckh_threshold: Part of the head within which a keypoint is right for PCKh.
        save_json: Writes metrics.json, detections.json (COCO results) and tables by slice, image, kind of error, score
            and class into the results' folder.
    """

    data: str | Path | None = None
    split: Literal["train", "val", "test"] | None = None
    imgsz: ImageSize | None = None
    batch: Annotated[int, Field(ge=1)] = 16
    conf: Fraction = 0.001
    iou: Annotated[float, Field(gt=0, le=1)] = 0.7
    max_det: Annotated[int, Field(ge=1)] = 300
    half: bool = False
    end2end: bool | None = None
    tags: Path | None = None
    pck_thresholds: PckThresholds = Evaluate().pck_thresholds
    pck_reference: PckReference = Evaluate().pck_reference
    pckh_threshold: PositiveFloat = Evaluate().pckh_threshold
    save_json: bool = False


class PredictArguments(VerbArguments):
    """Arguments of `predict`.

    Attributes:
        batch: Images a forward pass, of a folder, a list or a video.
        end2end: Of YOLO26, False uses the one-to-many head with NMS; by default as the weights say.
        classes: Keeps persons of these class indices alone.
        vid_stride: Takes every n-th frame of a video.
        save: Writes the drawn images and videos into the results' folder.
        save_txt: Writes labels/NAME.txt in the YOLO form; `save_conf` adds the score.
        save_crop: Writes each person's part of the image.
        show: Opens each drawn image in a window.
    """

    imgsz: ImageSize | None = None
    conf: Fraction = 0.25
    iou: Annotated[float, Field(gt=0, le=1)] = 0.7
    max_det: Annotated[int, Field(ge=1)] = 300
    batch: Annotated[int, Field(ge=1)] = 1
    half: bool = False
    end2end: bool | None = None
    classes: list[int] | int | None = None
    vid_stride: Annotated[int, Field(ge=1)] = 1
    save: bool = False
    save_txt: bool = False
    save_conf: bool = False
    save_crop: bool = False
    show: bool = False


class ExportArguments(VerbArguments):
    """Arguments of `export`.

    Attributes:
        format: `onnx` or `engine` (TensorRT, on a machine with an NVIDIA GPU and the tensorrt package).
        imgsz: Input size that the file states as its own; by default the model's.
        half: float16 within; input and output stay float32.
        end2end: Of YOLO26, False writes the one-to-many head, whose outputs need NMS; the file says so.
        batch: Largest batch of an engine; an ONNX file takes any.
        opset: Of ONNX.
        dynamic: Either way the file takes any batch and any image size.
        simplify: Either way the file is as simple as the exporter makes it.
    """

    format: Literal["onnx", "engine"] = "onnx"
    imgsz: ImageSize | None = None
    half: bool = False
    end2end: bool | None = None
    batch: Annotated[int, Field(ge=1)] = 1
    opset: Annotated[int, Field(ge=18, le=23)] = 18
    dynamic: bool = True
    simplify: bool = True


# The setting of config.Train behind each argument whose value passes as it is.
TRAIN_SETTINGS = {
    "epochs": "epochs",
    "batch": "batch_size",
    "workers": "loader_workers",
    "processes": "processes",
    "seed": "seed",
    "lr0": "learning_rate",
    "lrf": "final_learning_rate_fraction",
    "momentum": "momentum",
    "weight_decay": "weight_decay",
    "warmup_epochs": "warmup_epochs",
    "compile": "compile",
    "box": "loss.box",
    "cls": "loss.cls",
    "dfl": "loss.dfl",
    "pose": "loss.pose",
    "kobj": "loss.kobj",
    "l1": "loss.l1",
    "rle": "loss.rle",
    "class_weights": "loss.class_weights",
    "keypoint_weights": "loss.keypoint_weights",
    "hsv_h": "augment.hsv_hue",
    "hsv_s": "augment.hsv_saturation",
    "hsv_v": "augment.hsv_value",
    "degrees": "augment.rotate_degrees",
    "translate": "augment.translate_fraction",
    "scale": "augment.scale_fraction",
    "shear": "augment.shear_degrees",
    "fliplr": "augment.flip_probability",
    "flipud": "augment.flip_vertical_probability",
    "blur": "augment.blur_probability",
    "cutout": "augment.cutout_probability",
    "mosaic": "augment.mosaic_probability",
    "mixup": "augment.mixup_probability",
    "copy_paste": "augment.copy_paste_probability",
    "close_mosaic": "augment.mosaic_off_epochs",
    "ema_decay": "ema_decay",
    "ema_ramp_updates": "ema_ramp_updates",
    "gradient_clip_norm": "gradient_clip_norm",
    "validate_every_epochs": "validate_every_epochs",
    "patience": "early_stop_epochs",
    "freeze": "freeze_layers",
    "freeze_batchnorm": "freeze_batchnorm",
    "sync_batchnorm": "sync_batchnorm",
}
# Settings whose argument counts otherwise, or is rounded.
CONVERTED = {
    "image_size_px": "imgsz",
    "augment.perspective_fraction": "perspective",
    "augment.multi_scale_fraction": "multi_scale",
}
DEFAULTS = Train()
UNLIMITED_CACHE_GIB = 1e6
FRACTION_OF_MULTI_SCALE = 0.5  # what multi_scale=True means in the field

# Arguments of the field without a counterpart here, with the values that change nothing.
_COMMON_NEUTRAL: dict[str, tuple[Any, ...]] = {"mode": ("train", "val", "predict", "export"), "rect": (True, False)}
NEUTRAL: dict[str, dict[str, tuple[Any, ...]]] = {
    "TrainArguments": _COMMON_NEUTRAL
    | {
        "save": (True,),
        "save_period": (-1,),
        "val": (True,),
        "plots": (True, False),
        "single_cls": (False,),
        "deterministic": (True,),
        "fraction": (1.0,),
        "dropout": (0.0,),
        "nbs": (64,),
        "warmup_momentum": (0.8,),
        "warmup_bias_lr": (0.1,),
        "bgr": (0.0,),
        "cutmix": (0.0,),
        "copy_paste_mode": ("flip",),
    },
    "ValArguments": _COMMON_NEUTRAL
    | {"plots": (True, False), "augment": (False,), "agnostic_nms": (False,), "dnn": (False,), "single_cls": (False,)},
    "PredictArguments": _COMMON_NEUTRAL
    | {"augment": (False,), "agnostic_nms": (False,), "visualize": (False,), "retina_masks": (False,)},
    "ExportArguments": _COMMON_NEUTRAL
    | {"int8": (False,), "nms": (False,), "optimize": (False,), "keras": (False,), "workspace": (None, 4)},
}


def parse(kind: type[Arguments], given: dict[str, Any]) -> Arguments:
    """Checks the arguments of a verb.

    Raises:
        PosefoundryError: A key is unknown (the message names the nearest one) or a value impossible.
    """
    verb = kind.__name__.removesuffix("Arguments").lower()
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise PosefoundryError(f"{verb}: {_describe(error, kind)}") from None


def gpu_numbers(device: DeviceName) -> tuple[int, ...]:
    """Returns the numbers of the GPUs that 1, "0,1", [0, 1] or "cuda:1" name; none for other names."""
    names = device if isinstance(device, list) else str(device).strip().lower().removeprefix("cuda:").split(",")
    numbers = [str(name).strip() for name in names]
    return tuple(map(int, numbers)) if all(number.isdecimal() for number in numbers) else ()


def device_name(device: DeviceName) -> str:
    """Returns the name of a device as `load_backend` takes it: auto, cpu, cuda, cuda:1.

    Raises:
        PosefoundryError: Several devices are named.
    """
    gpus = gpu_numbers(device)
    if len(gpus) > 1 or (isinstance(device, list) and not gpus):
        raise PosefoundryError(f"device: expected one device, got {device!r}; several at once are for training only.")
    if gpus:
        return f"cuda:{gpus[0]}"
    return str(device if device is not None else "auto").strip().lower() or "auto"


def _describe(error: ValidationError, kind: type[BaseModel]) -> str:
    text = describe_validation_error(error, kind)
    # A fault that a validator of the whole found stands under its own name already.
    return text.replace("the file: ", "").replace("?.", "?")


def _in_field_words(text: str) -> str:
    names = {ours: field for field, ours in TRAIN_SETTINGS.items()} | CONVERTED
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"\b(?:{pattern})\b", lambda match: names[match[0]], text)
