"""Typed parameters: one frozen section a stage, as params.yaml has them."""

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from posefoundry.values import (
    AUTO_BATCH,
    AUTO_WORKERS,
    MAX_STRIDE_PX,
    Artifact,
    BatchSize,
    Fraction,
    LoaderWorkers,
    MetricName,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SliceMetricName,
    SliceName,
)


class Section(BaseModel):
    """A frozen group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SyntheticSource(Section):
    """Drawn people: how many images, how large, how crowded."""

    image_size_px: Annotated[int, Field(ge=64, le=2048)] = 192
    train_images: PositiveInt = 5000
    val_images: PositiveInt = 200
    test_images: PositiveInt = 400
    max_persons: Annotated[int, Field(ge=1, le=12)] = 4


class CocoSource(Section):
    """A folder in the layout of the COCO 2017 release; `{split}` stands for train, val and test."""

    root: Path = Path("data/source")
    annotations: str = "annotations/person_keypoints_{split}2017.json"
    images: str = "{split}2017"
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.15

    @model_validator(mode="after")
    def _templates_name_the_split(self) -> Self:
        for name in ("annotations", "images"):
            if "{split}" not in getattr(self, name):
                raise ValueError(f"{name} must contain {{split}}, got {getattr(self, name)!r}")
        return self


class Ingest(Section):
    """Where the data comes from."""

    source: Literal["synthetic", "coco"] = "synthetic"
    seed: NonNegativeInt = 7
    corrections: Path | None = None
    corrections_split: Literal["train", "val", "test"] = "train"
    tags: Path | None = None
    sigmas: Annotated[list[PositiveFloat], Field(min_length=1)] | None = None
    synthetic: SyntheticSource = SyntheticSource()
    coco: CocoSource = CocoSource()


class Convert(Section):
    """How COCO becomes YOLO pose labels."""

    images: Literal["hardlink", "symlink", "copy"] = "hardlink"
    min_box_side_px: PositiveFloat = 1.0


class Validate(Section):
    """What the data must fulfil before anybody trains on it."""

    min_persons_per_split: PositiveInt = 1
    max_set_aside_fraction: Fraction = 0.01


class LossGains(Section):
    """Weights of the loss terms, as published; `dfl` is of yolov8 and yolo11, `l1` and `rle` are of yolo26.

    Attributes:
        class_weights: By the class's name, how much it counts in the class loss; 1 where not stated.
        keypoint_weights: By the keypoint's name, how much it counts in `pose` and `rle`; 1 where not stated.
    """

    box: NonNegativeFloat = 7.5
    cls: NonNegativeFloat = 0.5
    dfl: NonNegativeFloat = 1.5
    pose: NonNegativeFloat = 12.0
    kobj: NonNegativeFloat = 1.0
    l1: NonNegativeFloat = 1.5
    rle: NonNegativeFloat = 1.0
    class_weights: dict[str, NonNegativeFloat] = {}
    keypoint_weights: dict[str, NonNegativeFloat] = {}


class Augment(Section):
    """What happens to a training image; what several make up together ends `mosaic_off_epochs` before training does."""

    flip_probability: Fraction = 0.5
    flip_vertical_probability: Fraction = 0.0
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    translate_fraction: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    scale_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.5
    shear_degrees: Annotated[float, Field(ge=0, le=60)] = 0.0
    perspective_fraction: Annotated[float, Field(ge=0, le=0.4)] = 0.0
    hsv_hue: Annotated[float, Field(ge=0, le=0.5)] = 0.015
    hsv_saturation: Fraction = 0.7
    hsv_value: Fraction = 0.4
    blur_probability: Fraction = 0.0
    cutout_probability: Fraction = 0.0
    mosaic_probability: Fraction = 1.0
    mixup_probability: Fraction = 0.0
    copy_paste_probability: Fraction = 0.0
    mosaic_off_epochs: NonNegativeInt = 10
    multi_scale_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Train(Section):
    """The model and how it learns."""

    model: Annotated[str, Field(pattern=r"^(yolo(v8|11|26)[nsmlx]-pose|yolov8x-pose-p6)$")] = "yolov8n-pose"
    weights: Path | None = None
    epochs: PositiveInt = 100
    batch_size: BatchSize = 16
    image_size_px: Annotated[int, Field(ge=MAX_STRIDE_PX, le=4096, multiple_of=MAX_STRIDE_PX)] = 640
    nodes: PositiveInt = 1
    processes: PositiveInt = 1
    max_restarts: NonNegativeInt = 3
    stall_timeout_s: Annotated[float, Field(gt=0, le=1e7)] = 300.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    seed: NonNegativeInt = 0
    optimizer: Literal["adamw", "sgd", "musgd"] = "sgd"
    learning_rate: PositiveFloat = 0.01
    final_learning_rate_fraction: Fraction = 0.01
    schedule: Literal["cosine", "linear"] = "linear"
    warmup_epochs: NonNegativeFloat = 3.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.937
    weight_decay: NonNegativeFloat = 0.0005
    gradient_clip_norm: PositiveFloat = 10.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    ema_ramp_updates: PositiveFloat = 2000.0
    validate_every_epochs: PositiveInt = 1
    image_cache_gib: NonNegativeFloat = 2.0
    image_cache_folder: Path | None = None
    early_stop_epochs: NonNegativeInt = 0
    checkpoint_every_steps: NonNegativeInt = 500
    checkpoint_every_epochs: NonNegativeInt = 1
    keep_checkpoints: PositiveInt = 2
    freeze_layers: NonNegativeInt = 0
    freeze_batchnorm: bool = False
    sync_batchnorm: bool = False
    loader_workers: LoaderWorkers = AUTO_WORKERS
    loss: LossGains = LossGains()
    augment: Augment = Augment()

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.batch_size != AUTO_BATCH and self.batch_size % self.total_processes:
            raise ValueError(
                f"batch_size is the global batch and must be a multiple of nodes times processes, got "
                f"{self.batch_size} and {self.nodes} x {self.processes}"
            )
        if self.warmup_epochs >= self.epochs and self.epochs > 1:
            raise ValueError(f"warmup_epochs must be less than epochs, got {self.warmup_epochs} and {self.epochs}")
        return self

    @property
    def total_processes(self) -> int:
        """Processes of all nodes together."""
        return self.nodes * self.processes


PckThresholds = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
PckReference = Literal["box", "torso"]


class Evaluate(Section):
    """How the best weights are judged on the test split."""

    confidence: Fraction = 0.001
    nms_iou: Annotated[float, Field(gt=0, le=1)] = 0.7
    max_detections: PositiveInt = 300
    batch_size: PositiveInt = 16
    overlay_images: NonNegativeInt = 8
    pck_thresholds: PckThresholds = (0.05, 0.1, 0.2)
    pck_reference: PckReference = "box"
    pckh_threshold: PositiveFloat = 0.5
    crossed_slices: tuple[SliceName, ...] = ()


class Floor(Section):
    """The model must reach a figure. In a slice, of OKS AP only."""

    rule: Literal["floor"]
    metric: MetricName = "oks_ap"
    slice: SliceName = "all"
    at_least: Fraction

    @model_validator(mode="after")
    def _measured_in_slices(self) -> Self:
        if self.slice != "all" and self.metric not in get_args(SliceMetricName):
            raise ValueError(
                f"in a slice there are {', '.join(get_args(SliceMetricName))}; got {self.metric} of {self.slice!r}"
            )
        return self


class NoRegression(Section):
    """The candidate may not fall behind production by more than the margin, in any of the slices."""

    rule: Literal["no_regression"]
    metric: SliceMetricName = "oks_ap"
    slices: Annotated[tuple[SliceName, ...], Field(min_length=1)] = ("all",)
    margin: Annotated[float, Field(ge=0, lt=1)]


class Improvement(Section):
    """The candidate must be proven better than production, by more than `margin`."""

    rule: Literal["improvement"]
    metric: SliceMetricName = "oks_ap"
    slice: SliceName = "all"
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0


class DataChecks(Section):
    """The data must have passed the checks of the validate stage; `warnings`, how many of those may have failed."""

    rule: Literal["data_checks"]
    warnings: NonNegativeInt | None = None


class ArtifactFloor(Section):
    """What ships must itself reach a figure; without `artifact`, everything that ships."""

    rule: Literal["floor"]
    artifact: Artifact | None = None
    metric: MetricName = "oks_ap"
    at_least: Fraction


class Parity(Section):
    """What ships must be as good as the PyTorch model it was made from: how far a figure may differ, up or down."""

    rule: Literal["parity"]
    artifact: Artifact | None = None
    metric: MetricName = "oks_ap"
    at_most: Fraction


class LatencyBudget(Section):
    """How long a batch may take, from pixels to persons, on the machine that measured."""

    rule: Literal["latency"]
    artifact: Artifact | None = None
    batch_size: PositiveInt = 1
    statistic: Literal["mean", "p50", "p95", "p99"] = "p50"
    at_most_ms: PositiveFloat


class SizeBudget(Section):
    """How large the file may be."""

    rule: Literal["size"]
    artifact: Artifact | None = None
    at_most_mb: PositiveFloat


GateRule = Annotated[Floor | NoRegression | Improvement | DataChecks, Field(discriminator="rule")]
ReleaseRule = Annotated[ArtifactFloor | Parity | LatencyBudget | SizeBudget, Field(discriminator="rule")]


class Gate(Section):
    """What a candidate must reach, and how sure of it one must be.

    Modes: `reject_on_proven_regression` lets a candidate pass unless it is proven to be worse than production by more
    than the margin; `demand_non_inferiority` only if it is proven not to be.
    """

    mode: Literal["reject_on_proven_regression", "demand_non_inferiority"] = "reject_on_proven_regression"
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    resamples: Annotated[int, Field(ge=100, le=1_000_000)] = 10_000
    seed: NonNegativeInt = 0
    incomparable_production: Literal["reject", "waive"] = "reject"
    shown_slices: tuple[SliceName, ...] = ("size", "keypoint", "visibility", "persons", "truncation")
    rules: Annotated[tuple[GateRule, ...], Field(min_length=1)] = (
        Floor(rule="floor", at_least=0.3),
        NoRegression(rule="no_regression", margin=0.01),
    )

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        tails = round(self.resamples * (1 - self.confidence) / 2, 9)
        if tails < 1:
            raise ValueError(
                f"confidence {self.confidence} lies beyond the outermost of {self.resamples} resamples; "
                "raise resamples or lower confidence"
            )
        seen: set[tuple[str, str, str]] = set()
        for rule in self.rules:
            slices = rule.slices if isinstance(rule, NoRegression) else (getattr(rule, "slice", ""),)
            for name in slices:
                key = (rule.rule, getattr(rule, "metric", ""), name)
                if key in seen:
                    raise ValueError(f"rules: {' '.join(part for part in key if part)} is stated twice")
                seen.add(key)
        return self


class Release(Section):
    """What the artifacts must reach before they are registered."""

    rules: Annotated[tuple[ReleaseRule, ...], Field(min_length=1)] = (Parity(rule="parity", at_most=0.01),)


class OnnxExport(Section):
    """The ONNX artifact."""

    opset: Annotated[int, Field(ge=18, le=23)] = 18
    parity_images: PositiveInt = 8
    max_parity_error_px: PositiveFloat = 0.05


class TensorRtExport(Section):
    """The TensorRT engine, built where an NVIDIA GPU and the tensorrt package are present."""

    build: Literal["auto", "never"] = "auto"
    precision: Literal["float32", "float16"] = "float16"
    max_batch_size: PositiveInt = 8
    max_parity_error_px: PositiveFloat = 4.0


class Export(Section):
    """What ships."""

    onnx: OnnxExport = OnnxExport()
    tensorrt: TensorRtExport = TensorRtExport()


class Benchmark(Section):
    """How latency is measured."""

    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 8]
    threads: NonNegativeInt = 0
    warmup_runs: NonNegativeInt = 5
    timed_runs: PositiveInt = 30


class Register(Section):
    """The model's place in the MLflow registry."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "posefoundry"
    experiment: Annotated[str, Field(min_length=1)] = "posefoundry"


class Params(Section):
    """The whole of params.yaml."""

    ingest: Ingest = Ingest()
    convert: Convert = Convert()
    validate_: Annotated[Validate, Field(alias="validate")] = Validate()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    export: Export = Export()
    benchmark: Benchmark = Benchmark()
    release: Release = Release()
    register_: Annotated[Register, Field(alias="register")] = Register()

    def section(self, stage: str) -> Section:
        """Returns the section of a stage by the stage's name."""
        attribute = f"{stage}_" if stage in ("validate", "register") else stage
        return getattr(self, attribute)
