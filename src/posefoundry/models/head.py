"""The pose head: three branches a feature level, raw outputs over all anchors, and their decoding to pixels.

Shape legend: B images, A anchors (all cells of all levels, by stride, row-major), K keypoints of V values
(x, y and, with V = 3, visibility), D bins.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from posefoundry.errors import PosefoundryError
from posefoundry.models.blocks import Conv
from posefoundry.models.families import HeadForm
from posefoundry.models.flow import RealNVP

INITIAL_BOX_BIAS = 2.0
CLASS_PRIOR_OBJECTS = 5  # the class bias starts as if a 640 px image held five objects, spread over all cells
CLASS_PRIOR_IMAGE_SIZE_PX = 640
# Others, such as meta, must not be asked; and to ask PyTorch 2.11 which they are would break a compiled model apart.
AUTOCAST_DEVICES = ("cpu", "cuda")


@dataclass
class HeadOutput:
    """What the head says before decoding.

    Attributes:
        boxes: (B, 4*D, A) logits over the bins of left, top, right, bottom distance, in strides; the distances
            themselves where D is 1.
        scores: (B, n_classes, A) logits.
        keypoints: (B, K*V, A) raw offsets and visibility logits.
        anchor_points_xy: (A, 2) cell centres, in cells (+0.5).
        anchor_strides_px: (A, 1).
        keypoint_sigmas: (B, K*2, A) logits of each coordinate's uncertainty, in yolo26 alone.
        one_to_one: The output of the head that needs no NMS, in yolo26 alone; the other fields are then those of the
            one-to-many head.
    """

    boxes: Tensor
    scores: Tensor
    keypoints: Tensor
    anchor_points_xy: Tensor
    anchor_strides_px: Tensor
    keypoint_sigmas: Tensor | None = None
    one_to_one: "HeadOutput | None" = None


class DFL(nn.Module):
    """Expected value of a distribution over distance bins (Generalized Focal Loss, arXiv:2006.04388)."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        # A parameter for the state dict's sake; its values 0..D-1 are fixed.
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.copy_(torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1))

    def forward(self, logits: Tensor) -> Tensor:
        """Turns (B, 4*D, A) into distances (B, 4, A), in strides."""
        batch, _, anchors = logits.shape
        bins = self.conv.weight.shape[1]
        probabilities = logits.view(batch, 4, bins, anchors).softmax(dim=2)
        return (probabilities * self.conv.weight.view(1, 1, bins, 1)).sum(dim=2)


class PoseHead(nn.Module):
    """Branches for boxes (`cv2`), classes (`cv3`) and keypoints (`cv4`) on each feature level.

    With `form.one_to_one` all branches exist twice; the second set, prefixed `one2one_`, reads detached features, so
    that only the one-to-many head shapes the backbone.

    Attributes:
        end2end: Of two heads, whether inference reads the one-to-one head.
    """

    def __init__(
        self, channels: tuple[int, ...], strides: tuple[int, ...], n_classes: int, kpt_shape: tuple[int, int],
        form: HeadForm,
    ) -> None:  # fmt: skip
        super().__init__()
        self.strides, self.n_classes, self.kpt_shape, self.form = strides, n_classes, kpt_shape, form
        self.end2end = True  # see `use`
        self._prefixes = ("", "one2one_") if form.one_to_one else ("",)
        n_keypoints, values = kpt_shape
        box_hidden = max(16, channels[0] // 4, 4 * form.bins)
        class_hidden = max(channels[0], min(n_classes, 100))
        point_hidden = max(channels[0] // 4, n_keypoints * (values + (2 if form.one_to_one else 0)))
        class_branch = _depthwise_branch if form.depthwise_classes else _branch
        for prefix in self._prefixes:
            add = partial(self._add, prefix)
            add("cv2", [_branch(c, box_hidden, 4 * form.bins) for c in channels])
            add("cv3", [class_branch(c, class_hidden, n_classes) for c in channels])
            if form.one_to_one:  # keypoints and sigmas read one shared feature
                add("cv4", [_branch(c, point_hidden) for c in channels])
                add("cv4_kpts", [nn.Conv2d(point_hidden, n_keypoints * values, 1) for _ in channels])
                add("cv4_sigma", [nn.Conv2d(point_hidden, n_keypoints * 2, 1) for _ in channels])
            else:
                add("cv4", [_branch(c, point_hidden, n_keypoints * values) for c in channels])
        if form.bins > 1:
            self.dfl = DFL(form.bins)
        if form.one_to_one:
            self.flow_model = RealNVP()
        self._set_initial_biases()

    def forward(self, features: list[Tensor]) -> HeadOutput:
        """Returns everything the head can say, as the losses need it."""
        output = self._run("", features, with_sigmas=self.form.one_to_one)
        if self.form.one_to_one:
            output.one_to_one = self._run("one2one_", [x.detach() for x in features], with_sigmas=True)
        return output

    def predict(self, features: list[Tensor]) -> HeadOutput:
        """Returns what inference decodes: for yolo26 one head alone, by `end2end`, without sigmas."""
        one_to_one = self.form.one_to_one and self.end2end
        return self._run("one2one_" if one_to_one else "", features, with_sigmas=False)

    def decode(self, output: HeadOutput) -> Tensor:
        """Turns raw outputs into (B, 4 + n_classes + K*V, A) float32.

        Rows: box centre x, y, width, height in pixels of the model's input; class scores after sigmoid; keypoints as
        x px, y px and visibility after sigmoid. Of a yolo26 output that holds both heads, the one in use is decoded.
        """
        output = (self.end2end and output.one_to_one) or output
        anchors_xy = output.anchor_points_xy.T  # (2, A)
        strides_px = output.anchor_strides_px.T  # (1, A)
        boxes = output.boxes.float()
        left_top, right_bottom = (self.dfl(boxes) if self.form.bins > 1 else boxes).chunk(2, dim=1)
        centres = anchors_xy + (right_bottom - left_top) / 2
        boxes_px = torch.cat((centres, left_top + right_bottom), dim=1) * strides_px
        n_keypoints, values = self.kpt_shape
        raw = output.keypoints.float().unflatten(1, (n_keypoints, values))  # (B, K, V, A)
        # yolo26 predicts offsets from the cell's centre; the others half offsets from its upper left corner.
        offsets = raw[:, :, :2] if self.form.one_to_one else 2 * raw[:, :, :2] - 0.5
        points = torch.cat(((offsets + anchors_xy) * strides_px, raw[:, :, 2:].sigmoid()), dim=2)
        return torch.cat((boxes_px, output.scores.float().sigmoid(), points.flatten(1, 2)), dim=1)

    def use(self, *, end2end: bool) -> None:
        """Makes inference read the one-to-one head, or the one-to-many head, whose boxes need NMS.

        Without effect on a head that has no second one.

        Raises:
            PosefoundryError: The head asked for went with `drop_training_parts`.
        """
        if self.form.one_to_one and not hasattr(self, "one2one_cv2" if end2end else "cv2"):
            raise PosefoundryError(
                f"end2end={end2end}: expected a model with both heads, got a fused one, which keeps only the head in "
                "use. Choose before fuse()."
            )
        self.end2end = end2end

    def drop_training_parts(self) -> None:
        """Removes what only training reads: the branches of the head not in use, the sigmas and the flow."""
        if self.form.one_to_one:
            unused = "" if self.end2end else "one2one_"
            branches = [unused + name for name in ("cv2", "cv3", "cv4", "cv4_kpts")]
            for name in (*branches, "cv4_sigma", "one2one_cv4_sigma", "flow_model"):
                if hasattr(self, name):
                    delattr(self, name)

    def class_branches(self) -> nn.ModuleList:
        """Returns the branches that tell classes, of both heads in yolo26."""
        return nn.ModuleList(getattr(self, prefix + "cv3") for prefix in self._prefixes)

    def last_convolutions(self) -> list[nn.Conv2d]:
        """Returns the convolutions that write the outputs; they run in float32 even where the rest doesn't."""
        inner = {block.conv for block in self.modules() if isinstance(block, Conv)}
        return [module for module in self.modules() if isinstance(module, nn.Conv2d) and module not in inner]

    def _add(self, prefix: str, name: str, levels: list[Any]) -> None:
        self.add_module(prefix + name, nn.ModuleList(levels))

    def _run(self, prefix: str, features: list[Tensor], *, with_sigmas: bool) -> HeadOutput:
        def over_levels(name: str, inputs: list[Tensor]) -> list[Tensor]:
            return [_apply(branch, x) for branch, x in zip(getattr(self, prefix + name), inputs, strict=True)]

        def flat(levels: list[Tensor]) -> Tensor:
            return torch.cat([level.flatten(2) for level in levels], dim=2)

        points = over_levels("cv4", features)
        sigmas = flat(over_levels("cv4_sigma", points)) if with_sigmas else None
        anchor_points_xy, anchor_strides_px = _anchors(features, self.strides)
        return HeadOutput(
            boxes=flat(over_levels("cv2", features)),
            scores=flat(over_levels("cv3", features)),
            keypoints=flat(over_levels("cv4_kpts", points) if self.form.one_to_one else points),
            anchor_points_xy=anchor_points_xy,
            anchor_strides_px=anchor_strides_px,
            keypoint_sigmas=sigmas,
        )

    @torch.no_grad()
    def _set_initial_biases(self) -> None:
        for prefix in self._prefixes:
            boxes, classes = getattr(self, f"{prefix}cv2"), getattr(self, f"{prefix}cv3")
            for box_branch, class_branch, stride in zip(boxes, classes, self.strides, strict=True):
                cells = (CLASS_PRIOR_IMAGE_SIZE_PX / stride) ** 2
                box_branch[-1].bias.fill_(INITIAL_BOX_BIAS)
                class_branch[-1].bias.fill_(math.log(CLASS_PRIOR_OBJECTS / self.n_classes / cells))


def _branch(c_in: int, hidden: int, c_out: int | None = None) -> nn.Sequential:
    layers: list[nn.Module] = [Conv(c_in, hidden, 3), Conv(hidden, hidden, 3)]
    return nn.Sequential(*layers, *([] if c_out is None else [nn.Conv2d(hidden, c_out, 1)]))


def _depthwise_branch(c_in: int, hidden: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(Conv(c_in, c_in, 3, groups=c_in), Conv(c_in, hidden)),
        nn.Sequential(Conv(hidden, hidden, 3, groups=hidden), Conv(hidden, hidden)),
        nn.Conv2d(hidden, c_out, 1),
    )


def _apply(branch: nn.Module, x: Tensor) -> Tensor:
    """Runs a branch, with the convolution that writes its output in float32.

    A keypoint offset of 5 cells has steps of 1/32 cell in bfloat16, 2 px at stride 32: enough to cost precision.
    """
    for layer in branch if isinstance(branch, nn.Sequential) else (branch,):
        x = _output_convolution(layer, x) if isinstance(layer, nn.Conv2d) else layer(x)
    return x


def _output_convolution(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    device = x.device.type
    if device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return convolution(x.float())
    return convolution(x.to(convolution.weight.dtype))


def _anchors(features: list[Tensor], strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    points, strides_px = [], []
    for feature, stride in zip(features, strides, strict=True):
        height, width = feature.shape[-2:]
        x = torch.arange(width, device=feature.device, dtype=torch.float32) + 0.5
        y = torch.arange(height, device=feature.device, dtype=torch.float32) + 0.5
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((grid_x, grid_y), dim=-1).view(-1, 2))
        strides_px.append(torch.full_like(points[-1][:, :1], stride))
    return torch.cat(points), torch.cat(strides_px)
