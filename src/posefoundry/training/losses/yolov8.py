"""The published losses of the YOLOv8-pose and YOLO11-pose families.

Shape legend: B images, M persons an image, A anchors, C classes, K keypoints, P positive anchors of all B images.
"""

import torch
from torch import Tensor

from posefoundry.config import LossGains
from posefoundry.models import HeadOutput
from posefoundry.training.assigner import Assignment, assign, centres_inside
from posefoundry.training.batch import Batch
from posefoundry.training.boxes import complete_iou
from posefoundry.training.losses.criterion import (
    PoseLoss,
    Positives,
    SumOverProcesses,
    Weights,
    alone,
    boxes_from_distances,
    class_loss,
    oks_loss,
    visibility_loss,
)

N_BINS = 16
CANDIDATES_PER_PERSON = 10


class Yolov8Criterion:
    """Task-aligned assignment; CIoU, distribution focal, OKS, visibility and class losses.

    Args:
        kpt_shape: K and the number of values each, 2 (x, y) or 3 (x, y, visibility).
        sigmas: (K,) of the skeleton.
        strides_px: Strides of the levels.
        gains: Weights of the terms.
        weights: Of classes and keypoints.
        sum_over_processes: Adds a tensor up over all processes; the identity for a single one.
    """

    terms: tuple[str, ...] = ("box", "pose", "kobj", "cls", "dfl")

    def __init__(
        self,
        *,
        kpt_shape: tuple[int, int],
        sigmas: tuple[float, ...],
        strides_px: tuple[int, ...],
        gains: LossGains,
        weights: Weights,
        sum_over_processes: SumOverProcesses = alone,
    ) -> None:
        self.kpt_shape = kpt_shape
        self.sigmas = torch.tensor(sigmas)
        self.min_side_px = float(strides_px[min(1, len(strides_px) - 1)])
        self.gains, self.weights = gains, weights
        self.sum_over_processes = sum_over_processes

    def start_epoch(self, epoch: int) -> None:
        """All epochs are the same."""

    def __call__(self, output: HeadOutput, batch: Batch) -> PoseLoss:
        """Returns the loss of the batch; its total counts times the global number of images, as published."""
        logits = output.scores.float().transpose(1, 2)  # (B, A, C)
        self.sigmas, self.weights = self.sigmas.to(logits.device), self.weights.to(logits.device)  # moved once
        assignment = self._assign(output, logits, batch)
        positives = Positives.of(assignment, output, batch)
        n_images, score_sum, n_positive = self._global_counts(batch, assignment)

        box, dfl = _box_losses(positives.select(output.boxes), positives, score_sum)
        raw = positives.select(output.keypoints).unflatten(-1, self.kpt_shape)
        # The decoding of the families: (2 raw + anchor - 0.5) strides, with the anchor at the cell's centre.
        keypoints_xy = raw[..., :2] * 2 + (positives.points_xy - 0.5)[:, None]
        terms = {
            "box": box,
            "pose": oks_loss(keypoints_xy, positives, self.sigmas, self.weights.keypoints, n_positive),
            "kobj": visibility_loss(raw, positives, n_positive),
            "cls": class_loss(logits, assignment, score_sum, self.weights.classes),
            "dfl": dfl,
        }
        weighted = {name: terms[name] * getattr(self.gains, name) for name in self.terms}
        return PoseLoss(
            total=torch.stack(list(weighted.values())).sum() * n_images,
            terms={name: term.detach() for name, term in weighted.items()},
            n_positive_anchors=assignment.is_positive.sum(),
        )

    @torch.no_grad()
    def _assign(self, output: HeadOutput, logits: Tensor, batch: Batch) -> Assignment:
        """Assigns by CIoU. Its decoding of all boxes needs no gradient: the few positive ones are decoded again."""
        points_xy, strides_px = output.anchor_points_xy.float(), output.anchor_strides_px.float()
        box_logits = output.boxes.transpose(1, 2).contiguous().float()  # (B, A, 4 * bins)
        boxes_xyxy = boxes_from_distances(points_xy, _expected_distances(box_logits)) * strides_px  # (B, A, 4), px
        return assign(
            logits.sigmoid(),
            complete_iou(batch.boxes_xyxy[:, :, None], boxes_xyxy[:, None]),
            centres_inside(points_xy * strides_px, batch.boxes_xyxy, self.min_side_px) & batch.is_person[..., None],
            batch.class_ids,
            keep_best=CANDIDATES_PER_PERSON,
        )

    def _global_counts(self, batch: Batch, assignment: Assignment) -> tuple[Tensor, Tensor, Tensor]:
        """Returns images, sum of target scores and positive anchors of all processes; the latter two at least 1."""
        local = torch.stack(
            [
                assignment.scores.new_full((), len(batch.images)),
                assignment.scores.sum(),
                assignment.is_positive.sum().to(assignment.scores.dtype),
            ]
        )
        n_images, score_sum, n_positive = self.sum_over_processes(local).unbind()
        return n_images, score_sum.clamp(min=1), n_positive.clamp(min=1)


def _box_losses(box_logits: Tensor, positives: Positives, score_sum: Tensor) -> tuple[Tensor, Tensor]:
    """CIoU and distribution focal loss (Li et al. 2020, arXiv:2006.04388) of (P, 4 * bins) logits."""
    weights = positives.scores / score_sum
    boxes_xyxy = boxes_from_distances(positives.points_xy, _expected_distances(box_logits))
    box = ((1 - complete_iou(boxes_xyxy, positives.boxes_xyxy)) * weights).sum()
    distances = positives.distances_ltrb().clamp(0, N_BINS - 1 - 0.01)  # the upper neighbour must exist
    lower = distances.long()
    upper_weight = distances - lower
    log_probabilities = box_logits.unflatten(-1, (4, N_BINS)).log_softmax(-1)
    at_lower = log_probabilities.gather(-1, lower[..., None]).squeeze(-1)
    at_upper = log_probabilities.gather(-1, lower[..., None] + 1).squeeze(-1)
    dfl = -(at_lower * (1 - upper_weight) + at_upper * upper_weight).mean(-1)
    return box, (dfl * weights).sum()


def _expected_distances(box_logits: Tensor) -> Tensor:
    """Returns (..., 4) expected distances left, top, right and bottom, in strides, of (..., 4 * bins) logits."""
    bins = torch.arange(N_BINS, dtype=box_logits.dtype, device=box_logits.device)
    return box_logits.unflatten(-1, (4, N_BINS)).softmax(-1) @ bins
