"""How large a model is and how much it computes."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from posefoundry.models.families import MODEL_NAMES
from posefoundry.models.pose_model import PoseModel, build_model

COCO_CLASSES = 80
IMAGE_SIZE_PX = 640
IMAGE_SIZE_P6_PX = 1280


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A model in use, with convolution and BatchNorm fused.

    Attributes:
        name: Its architecture.
        n_classes: Number of classes that the figures are for.
        image_size_px: Side of the square image that `gflops` is for.
        layers: Modules that compute something by themselves.
        parameters: Number of weights.
        gflops: 10^9 operations an image; a multiplication with its addition counts as two.
    """

    name: str
    n_classes: int
    image_size_px: int
    layers: int
    parameters: int
    gflops: float


def profile_model(name: str, *, n_classes: int, kpt_shape: tuple[int, int], image_size_px: int) -> Profile:
    """Counts parameters and operations of a model in use: for yolo26, of its one-to-one head alone."""
    with torch.device("meta"):  # shapes without memory or arithmetic
        model = build_model(name, n_classes=n_classes, kpt_shape=kpt_shape).fuse()
        images = torch.empty(1, 3, image_size_px, image_size_px)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        model(images)
    return Profile(
        name=name,
        n_classes=n_classes,
        image_size_px=image_size_px,
        layers=count_layers(model),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflops=counter.get_total_flops() / 1e9,
    )


def published_profiles() -> list[Profile]:
    """Profiles all models as they were published: yolov8 with one class, 11 and 26 with COCO's 80; 17 keypoints."""
    return [
        profile_model(
            name,
            n_classes=1 if name.startswith("yolov8") else COCO_CLASSES,
            kpt_shape=(17, 3),
            image_size_px=IMAGE_SIZE_P6_PX if name.endswith("-p6") else IMAGE_SIZE_PX,
        )
        for name in MODEL_NAMES
    ]


def count_layers(model: PoseModel) -> int:
    """Counts the modules without modules of their own."""
    return sum(not any(module.children()) for module in model.modules())
