"""The published YOLO-pose families as tables: read them side by side to see what changed from one to the next.

A row is one layer: its block, its channels and repeats before scaling, the layers it reads (-1: the row above), and
what else is special. A row's index is the layer's place in the state dict (`model.<index>`). `Conv` rows are 3x3 with
stride 2, `Upsample` rows double the size by nearest neighbour, the last row is the head.
The parity tests prove them: names, shapes and outputs equal the published models'.
"""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from posefoundry.errors import PosefoundryError
from posefoundry.models.blocks import Unit


class Layer(NamedTuple):
    """One row of a family's table."""

    block: str
    channels: int = 0
    repeats: int = 1
    inputs: tuple[int, ...] = (-1,)
    shortcut: bool = False  # C2f, C2: bottlenecks add their input
    expansion: float = 0.5  # C3k2: hidden channels per channel out
    unit: Unit = "bottleneck"  # C3k2: what it repeats
    residual: bool = False  # SPPF: the form that adds its input


YOLOV8 = (
    Layer("Conv", 64),                                  #  0  stride 2
    Layer("Conv", 128),                                 #  1  stride 4
    Layer("C2f", 128, 3, shortcut=True),                #  2
    Layer("Conv", 256),                                 #  3  stride 8
    Layer("C2f", 256, 6, shortcut=True),                #  4
    Layer("Conv", 512),                                 #  5  stride 16
    Layer("C2f", 512, 6, shortcut=True),                #  6
    Layer("Conv", 1024),                                #  7  stride 32
    Layer("C2f", 1024, 3, shortcut=True),               #  8
    Layer("SPPF", 1024),                                #  9
    Layer("Upsample"),                                  # 10
    Layer("Concat", inputs=(-1, 6)),                    # 11
    Layer("C2f", 512, 3),                               # 12
    Layer("Upsample"),                                  # 13
    Layer("Concat", inputs=(-1, 4)),                    # 14
    Layer("C2f", 256, 3),                               # 15
    Layer("Conv", 256),                                 # 16
    Layer("Concat", inputs=(-1, 12)),                   # 17
    Layer("C2f", 512, 3),                               # 18
    Layer("Conv", 512),                                 # 19
    Layer("Concat", inputs=(-1, 9)),                    # 20
    Layer("C2f", 1024, 3),                              # 21
    Layer("Pose", inputs=(15, 18, 21)),                 # 22
)  # fmt: skip

YOLOV8_P6 = (
    Layer("Conv", 64),                                  #  0  stride 2
    Layer("Conv", 128),                                 #  1  stride 4
    Layer("C2f", 128, 3, shortcut=True),                #  2
    Layer("Conv", 256),                                 #  3  stride 8
    Layer("C2f", 256, 6, shortcut=True),                #  4
    Layer("Conv", 512),                                 #  5  stride 16
    Layer("C2f", 512, 6, shortcut=True),                #  6
    Layer("Conv", 768),                                 #  7  stride 32
    Layer("C2f", 768, 3, shortcut=True),                #  8
    Layer("Conv", 1024),                                #  9  stride 64
    Layer("C2f", 1024, 3, shortcut=True),               # 10
    Layer("SPPF", 1024),                                # 11
    Layer("Upsample"),                                  # 12
    Layer("Concat", inputs=(-1, 8)),                    # 13
    Layer("C2", 768, 3),                                # 14
    Layer("Upsample"),                                  # 15
    Layer("Concat", inputs=(-1, 6)),                    # 16
    Layer("C2", 512, 3),                                # 17
    Layer("Upsample"),                                  # 18
    Layer("Concat", inputs=(-1, 4)),                    # 19
    Layer("C2", 256, 3),                                # 20
    Layer("Conv", 256),                                 # 21
    Layer("Concat", inputs=(-1, 17)),                   # 22
    Layer("C2", 512, 3),                                # 23
    Layer("Conv", 512),                                 # 24
    Layer("Concat", inputs=(-1, 14)),                   # 25
    Layer("C2", 768, 3),                                # 26
    Layer("Conv", 768),                                 # 27
    Layer("Concat", inputs=(-1, 11)),                   # 28
    Layer("C2", 1024, 3),                               # 29
    Layer("Pose", inputs=(20, 23, 26, 29)),             # 30
)  # fmt: skip

YOLO11 = (
    Layer("Conv", 64),                                  #  0  stride 2
    Layer("Conv", 128),                                 #  1  stride 4
    Layer("C3k2", 256, 2, expansion=0.25),              #  2
    Layer("Conv", 256),                                 #  3  stride 8
    Layer("C3k2", 512, 2, expansion=0.25),              #  4
    Layer("Conv", 512),                                 #  5  stride 16
    Layer("C3k2", 512, 2, unit="c3k"),                  #  6
    Layer("Conv", 1024),                                #  7  stride 32
    Layer("C3k2", 1024, 2, unit="c3k"),                 #  8
    Layer("SPPF", 1024),                                #  9
    Layer("C2PSA", 1024, 2),                            # 10
    Layer("Upsample"),                                  # 11
    Layer("Concat", inputs=(-1, 6)),                    # 12
    Layer("C3k2", 512, 2),                              # 13
    Layer("Upsample"),                                  # 14
    Layer("Concat", inputs=(-1, 4)),                    # 15
    Layer("C3k2", 256, 2),                              # 16
    Layer("Conv", 256),                                 # 17
    Layer("Concat", inputs=(-1, 13)),                   # 18
    Layer("C3k2", 512, 2),                              # 19
    Layer("Conv", 512),                                 # 20
    Layer("Concat", inputs=(-1, 10)),                   # 21
    Layer("C3k2", 1024, 2, unit="c3k"),                 # 22
    Layer("Pose", inputs=(16, 19, 22)),                 # 23
)  # fmt: skip

YOLO26 = (
    Layer("Conv", 64),                                  #  0  stride 2
    Layer("Conv", 128),                                 #  1  stride 4
    Layer("C3k2", 256, 2, expansion=0.25),              #  2
    Layer("Conv", 256),                                 #  3  stride 8
    Layer("C3k2", 512, 2, expansion=0.25),              #  4
    Layer("Conv", 512),                                 #  5  stride 16
    Layer("C3k2", 512, 2, unit="c3k"),                  #  6
    Layer("Conv", 1024),                                #  7  stride 32
    Layer("C3k2", 1024, 2, unit="c3k"),                 #  8
    Layer("SPPF", 1024, residual=True),                 #  9
    Layer("C2PSA", 1024, 2),                            # 10
    Layer("Upsample"),                                  # 11
    Layer("Concat", inputs=(-1, 6)),                    # 12
    Layer("C3k2", 512, 2, unit="c3k"),                  # 13
    Layer("Upsample"),                                  # 14
    Layer("Concat", inputs=(-1, 4)),                    # 15
    Layer("C3k2", 256, 2, unit="c3k"),                  # 16
    Layer("Conv", 256),                                 # 17
    Layer("Concat", inputs=(-1, 13)),                   # 18
    Layer("C3k2", 512, 2, unit="c3k"),                  # 19
    Layer("Conv", 512),                                 # 20
    Layer("Concat", inputs=(-1, 10)),                   # 21
    Layer("C3k2", 1024, 1, unit="attention"),           # 22
    Layer("Pose", inputs=(16, 19, 22)),                 # 23
)  # fmt: skip


class Scale(NamedTuple):
    """How a size stretches its family's table."""

    depth: float
    width: float
    max_channels: int
    c3k_everywhere: bool = False  # plain C3k2 units become C3k

    def channels(self, stated: int) -> int:
        """Scales a row's channels, rounded up to a multiple of 8."""
        return math.ceil(min(stated, self.max_channels) * self.width / 8) * 8

    def repeats(self, stated: int) -> int:
        """Scales a row's repeats; a single block stays single."""
        return max(round(stated * self.depth), 1) if stated > 1 else stated


SCALES_V8 = {
    "n": Scale(0.33, 0.25, 1024),
    "s": Scale(0.33, 0.50, 1024),
    "m": Scale(0.67, 0.75, 768),
    "l": Scale(1.00, 1.00, 512),
    "x": Scale(1.00, 1.25, 512),
}
SCALES_11_AND_26 = {
    "n": Scale(0.50, 0.25, 1024),
    "s": Scale(0.50, 0.50, 1024),
    "m": Scale(0.50, 1.00, 512, c3k_everywhere=True),
    "l": Scale(1.00, 1.00, 512, c3k_everywhere=True),
    "x": Scale(1.00, 1.50, 512, c3k_everywhere=True),
}


class HeadForm(NamedTuple):
    """What distinguishes the families' heads."""

    bins: int  # of the distribution over each box side's distance; 1: the distance itself
    depthwise_classes: bool  # the class branch pairs depthwise and 1x1 convolutions
    one_to_one: bool  # a second head that needs no NMS; keypoints come with sigmas, trained through a flow


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models: one table, its sizes and the form of its head."""

    layers: tuple[Layer, ...]
    scales: dict[str, Scale]
    head: HeadForm


FAMILIES = {
    "yolov8{size}-pose": Family(layers=YOLOV8, scales=SCALES_V8, head=HeadForm(16, False, False)),
    "yolov8{size}-pose-p6": Family(
        layers=YOLOV8_P6, scales={"x": SCALES_V8["x"]}, head=HeadForm(16, False, False)
    ),
    "yolo11{size}-pose": Family(layers=YOLO11, scales=SCALES_11_AND_26, head=HeadForm(16, True, False)),
    "yolo26{size}-pose": Family(layers=YOLO26, scales=SCALES_11_AND_26, head=HeadForm(1, True, True)),
}  # fmt: skip

MODEL_NAMES = tuple(name.format(size=size) for name, family in FAMILIES.items() for size in family.scales)


def family_of(name: str) -> tuple[Family, Scale]:
    """Finds a model's family and size by its name, such as `yolov8n-pose`.

    Raises:
        PosefoundryError: There is no such model; the message lists those there are.
    """
    if name not in MODEL_NAMES:
        raise PosefoundryError(f"Expected a model among {', '.join(MODEL_NAMES)}; got {name!r}.")
    prefix, size, suffix = re.fullmatch(r"(yolov?\d+)([a-z])(.*)", name).groups()  # type: ignore[union-attr]
    family = FAMILIES[f"{prefix}{{size}}{suffix}"]
    return family, family.scales[size]


def needs_nms(name: str) -> bool:
    """Whether a model's decoded output holds several boxes a person, which non-maximum suppression thins out."""
    return not family_of(name)[0].head.one_to_one
