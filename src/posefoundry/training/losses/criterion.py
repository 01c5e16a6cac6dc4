"""What the families' losses have in common.

Every term is a sum over this process's anchors divided by a count over all processes' anchors, so that any number of
processes computes the loss of the whole batch.

Shape legend: B images, M persons an image, A anchors, K keypoints, P positive anchors of all B images.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from posefoundry.errors import PosefoundryError
from posefoundry.models import HeadOutput
from posefoundry.training.assigner import Assignment
from posefoundry.training.batch import Batch

SumOverProcesses = Callable[[Tensor], Tensor]


def alone(local: Tensor) -> Tensor:
    """Returns the sum over all processes where there is but one."""
    return local


@dataclass(frozen=True)
class PoseLoss:
    """The loss to differentiate and its terms, gains included, for the log."""

    total: Tensor
    terms: dict[str, Tensor]  # detached scalars by the names in `Criterion.terms`
    n_positive_anchors: Tensor  # scalar, this process


class Criterion(Protocol):
    """Computes the loss of a batch from the raw outputs of the head.

    Attributes:
        terms: Names of the loss terms, in the order of the log.
    """

    terms: tuple[str, ...]

    def start_epoch(self, epoch: int) -> None:
        """Hears which epoch begins, counted from 0."""
        ...

    def __call__(self, output: HeadOutput, batch: Batch) -> PoseLoss:
        """Returns the loss of the batch; its total counts times the global number of images, as published."""
        ...


@dataclass(frozen=True)
class Weights:
    """How much each class and each keypoint counts."""

    classes: Tensor | None  # (C,); None: all the same
    keypoints: Tensor  # (K,)

    def to(self, device: torch.device) -> "Weights":
        """Returns the weights on a device."""
        return Weights(None if self.classes is None else self.classes.to(device), self.keypoints.to(device))


@dataclass(frozen=True)
class Positives:
    """The P anchors that learn a person, and what they learn, in strides of each anchor's level."""

    image: Tensor  # (P,) int64
    anchor: Tensor  # (P,) int64
    points_xy: Tensor  # (P, 2) the cell's centre
    strides_px: Tensor  # (P, 1)
    scores: Tensor  # (P,) target scores
    boxes_xyxy: Tensor  # (P, 4)
    keypoints_xy: Tensor  # (P, K, 2)
    labelled: Tensor  # (P, K) float32, 1 where v > 0, hidden or not

    @classmethod
    def of(cls, assignment: Assignment, output: HeadOutput, batch: Batch) -> "Positives":
        """Gathers the targets of the positive anchors."""
        image, anchor = assignment.is_positive.nonzero(as_tuple=True)
        person = assignment.person_index[image, anchor]
        strides_px = output.anchor_strides_px.float()[anchor]
        keypoints_xyv = batch.keypoints_xyv[image, person]
        return cls(
            image=image,
            anchor=anchor,
            points_xy=output.anchor_points_xy.float()[anchor],
            strides_px=strides_px,
            scores=assignment.scores[image, anchor].sum(-1),
            boxes_xyxy=batch.boxes_xyxy[image, person] / strides_px,
            keypoints_xy=keypoints_xyv[..., :2] / strides_px[:, None],
            labelled=(keypoints_xyv[..., 2] > 0).float(),
        )

    def __len__(self) -> int:
        return len(self.image)

    def select(self, rows: Tensor) -> Tensor:
        """Picks the positive anchors' rows (P, C) out of a head's output (B, C, A), as float32."""
        return rows.transpose(1, 2)[self.image, self.anchor].float()

    def distances_ltrb(self) -> Tensor:
        """Returns (P, 4): from the anchor's centre to the left, top, right and bottom side of its person's box."""
        return torch.cat([self.points_xy - self.boxes_xyxy[:, :2], self.boxes_xyxy[:, 2:] - self.points_xy], -1)


def boxes_from_distances(points_xy: Tensor, distances_ltrb: Tensor) -> Tensor:
    """Returns (..., 4) x1, y1, x2, y2 from centres (..., 2) and distances to left, top, right and bottom."""
    return torch.cat([points_xy - distances_ltrb[..., :2], points_xy + distances_ltrb[..., 2:]], -1)


def named_weights(setting: str, weights: Mapping[str, float], names: Sequence[str]) -> Tensor:
    """Returns (len(names),) weights by name, 1 where none is stated.

    Raises:
        PosefoundryError: A name is unknown; the message has the setting and the nearest known name.
    """
    for name in weights:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the data has: {', '.join(names)}."
            raise PosefoundryError(f"train.loss.{setting}: unknown name {name!r}; {hint}")
    return torch.tensor([weights.get(name, 1.0) for name in names])


def oks_loss(predicted_xy: Tensor, positives: Positives, sigmas: Tensor, weights: Tensor, n_positive: Tensor) -> Tensor:
    """1 - OKS of each keypoint (YOLO-Pose, Maji et al. 2022, arXiv:2204.06806), by the whole area of the box.

    Args:
        predicted_xy: (P, K, 2) in strides.
        positives: What they should be.
        sigmas: (K,).
        weights: (K,), how much each keypoint counts.
        n_positive: Positive anchors of all processes.
    """
    n_keypoints = len(sigmas)
    area = (positives.boxes_xyxy[:, 2:] - positives.boxes_xyxy[:, :2]).prod(-1, keepdim=True)
    distance_squared = (predicted_xy - positives.keypoints_xy).square().sum(-1)
    exponent = distance_squared / ((2 * sigmas).square() * (area + 1e-9) * 2)
    per_keypoint = (1 - torch.exp(-exponent)) * positives.labelled * weights
    scale = n_keypoints / positives.labelled.sum(-1, keepdim=True).clamp(min=1)
    return (per_keypoint * scale).sum() / (n_positive * n_keypoints)


def visibility_loss(raw_keypoints: Tensor, positives: Positives, n_positive: Tensor) -> Tensor:
    """Binary cross entropy of the visibilities in (P, K, V) raw outputs; 0 where there are none (V = 2)."""
    if raw_keypoints.shape[-1] == 2:
        return raw_keypoints.new_zeros(())
    logits, labelled = raw_keypoints[..., 2], positives.labelled
    return F.binary_cross_entropy_with_logits(logits, labelled, reduction="sum") / (n_positive * labelled.shape[-1])


def class_loss(logits: Tensor, assignment: Assignment, score_sum: Tensor, weights: Tensor | None) -> Tensor:
    """Binary cross entropy of all (B, A, C) class logits against the soft targets, over the sum of these.

    `weights` (C,) say how much each class counts; None is for all the same, which costs less.
    """
    return F.binary_cross_entropy_with_logits(logits, assignment.scores, weights, reduction="sum") / score_sum
