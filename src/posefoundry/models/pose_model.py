"""The model: a family's table turned into layers, run in order, ending in the head."""

from typing import Self, cast

import torch
from torch import Tensor, nn

from posefoundry.errors import PosefoundryError
from posefoundry.models.blocks import C2, C2PSA, SPPF, C2f, C3k2, Concat, Conv
from posefoundry.models.families import Layer, Scale, family_of
from posefoundry.models.head import HeadOutput, PoseHead


class PoseModel(nn.Module):
    """A YOLO-pose model.

    Attributes:
        name: The model's name, such as `yolov8n-pose`.
        n_classes: Number of object classes.
        kpt_shape: (K keypoints, V values); V is 3 with visibility, otherwise 2.
        strides: Pixels per cell of each feature level.
    """

    def __init__(self, name: str, n_classes: int, kpt_shape: tuple[int, int]) -> None:
        super().__init__()
        family, scale = family_of(name)
        self.name, self.n_classes, self.kpt_shape = name, n_classes, kpt_shape
        *body, head = family.layers
        self.model = nn.ModuleList()
        channels: list[int] = []
        strides: list[int] = []
        for layer in body:
            c_in = sum(channels[i] for i in layer.inputs) if channels else 3
            c_out = scale.channels(layer.channels) or c_in
            step = {"Conv": 2.0, "Upsample": 0.5}.get(layer.block, 1.0)
            strides.append(int((strides[layer.inputs[0]] if strides else 1) * step))
            channels.append(c_out)
            self.model.append(_build_layer(layer, c_in, c_out, scale))
        self.strides = tuple(strides[i] for i in head.inputs)
        head_channels = tuple(channels[i] for i in head.inputs)
        self.model.append(PoseHead(head_channels, self.strides, n_classes, kpt_shape, family.head))
        self._inputs = tuple(tuple(i % n if n else 0 for i in layer.inputs) for n, layer in enumerate(family.layers))

    @property
    def head(self) -> PoseHead:
        """The last layer."""
        return cast(PoseHead, self.model[-1])

    def forward(self, images: Tensor) -> HeadOutput | Tensor:
        """Runs the model on images (B, 3, H, W), RGB in 0..1, H and W multiples of the largest stride.

        Returns:
            In training mode the raw `HeadOutput`; in evaluation mode the decoded tensor (B, 4 + n_classes + K*V, A),
            see `PoseHead.decode`.
        """
        if self.training:
            return self.heads(images)
        return self.decode(self.head.predict(self._features(images)))

    def heads(self, images: Tensor) -> HeadOutput:
        """Returns the raw outputs in either mode, all that the losses need."""
        return self.head(self._features(images))

    def decode(self, output: HeadOutput) -> Tensor:
        """Turns raw outputs into pixels and probabilities, see `PoseHead.decode`."""
        return self.head.decode(output)

    def fuse(self) -> Self:
        """Prepares for inference: folds each BatchNorm into its convolution and drops what only training reads."""
        self.eval()
        self.head.drop_training_parts()
        for module in self.modules():
            if isinstance(module, Conv):
                module.fuse()
        return self

    def to_reduced_precision(self, dtype: torch.dtype) -> Self:
        """Casts all weights but those of the last convolutions, whose outputs are pixels and need float32."""
        self.to(dtype)
        for convolution in self.head.last_convolutions():
            convolution.float()
        return self

    def _features(self, images: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        for index, layer in enumerate(self.model[:-1]):
            inputs = [outputs[i] for i in self._inputs[index]] if index else [images]
            outputs.append(layer(*inputs))
        return [outputs[i] for i in self._inputs[-1]]


def build_model(name: str, *, n_classes: int = 1, kpt_shape: tuple[int, int] = (17, 3)) -> PoseModel:
    """Builds a model with fresh weights.

    Raises:
        PosefoundryError: The name is unknown, or the counts are impossible.
    """
    if n_classes < 1:
        raise PosefoundryError(f"n_classes must be at least 1, got {n_classes}.")
    if kpt_shape[0] < 1 or kpt_shape[1] not in (2, 3):
        raise PosefoundryError(f"kpt_shape must be (K, 2) or (K, 3) with K of at least 1, got {tuple(kpt_shape)}.")
    return PoseModel(name, n_classes, (kpt_shape[0], kpt_shape[1]))


def _build_layer(layer: Layer, c_in: int, c_out: int, scale: Scale) -> nn.Module:
    repeats = scale.repeats(layer.repeats)
    match layer.block:
        case "Conv":
            return Conv(c_in, c_out, 3, 2)
        case "C2f":
            return C2f(c_in, c_out, repeats, shortcut=layer.shortcut)
        case "C2":
            return C2(c_in, c_out, repeats, shortcut=layer.shortcut)
        case "C3k2":
            unit = "c3k" if scale.c3k_everywhere and layer.unit == "bottleneck" else layer.unit
            return C3k2(c_in, c_out, repeats, expansion=layer.expansion, unit=unit)
        case "SPPF":
            return SPPF(c_in, c_out, residual=layer.residual)
        case "C2PSA":
            return C2PSA(c_in, c_out, repeats)
        case "Upsample":
            return nn.Upsample(scale_factor=2.0, mode="nearest")
        case "Concat":
            return Concat()
        case _:
            raise PosefoundryError(f"Expected a known block in a family's table, got {layer.block!r}.")
