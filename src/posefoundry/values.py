"""Kinds of values that parameters and arguments have."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

Fraction = Annotated[float, Field(ge=0, le=1)]


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


PositiveInt = Annotated[int, BeforeValidator(_no_truth_value), Field(gt=0, lt=2**63)]
NonNegativeInt = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=0, lt=2**63)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]

MAX_STRIDE_PX = 32
MAX_BATCH = 2**20
AUTO_BATCH = -1  # what `batch_size: auto` is kept as
AUTO_WORKERS = -1  # what `loader_workers: auto` is kept as


def _positive_or_auto(value: int) -> int:
    if not 1 <= value <= MAX_BATCH and value != AUTO_BATCH:
        raise ValueError(f"expected auto or a number of images from 1 to {MAX_BATCH:,}")
    return value


BatchSize = Annotated[
    int,
    BeforeValidator(_no_truth_value),
    BeforeValidator(lambda value: AUTO_BATCH if value == "auto" else value),
    AfterValidator(_positive_or_auto),
]
LoaderWorkers = Annotated[
    int, BeforeValidator(lambda value: AUTO_WORKERS if value == "auto" else value), Field(ge=AUTO_WORKERS)
]

# What the evaluate stage measures; a rule on anything else could never hold.
MetricName = Annotated[
    str, Field(pattern=r"^(oks_(ap|ar)(50|75|_m|_l)?|box_ap(50|75|_s|_m|_l)?|pckh?_[0-9]+(\.[0-9]+)?)$")
]
# What the evaluate stage measures in each slice, and what is resampled.
SliceMetricName = Literal["oks_ap", "oks_ap50", "oks_ap75"]
# `all`, `size=medium`, `keypoint=left_wrist&size=small`; a group's name alone stands for each of its values.
SliceName = Annotated[str, Field(pattern=r"^[^&=]+(=[^&=]+)?(&[^&=]+(=[^&=]+)?)*$")]
Artifact = Literal["model.onnx", "model.engine"]
