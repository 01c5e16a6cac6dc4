"""The published losses of the YOLOv8-pose and YOLO11-pose families.

Every term is a sum over this process's anchors divided by a count over all processes' anchors, so that any number of
processes computes the loss of the whole batch.

Shape legend: B images, M persons an image, A anchors, C classes, K keypoints, P positive anchors of all B images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from posefoundry.config import LossGains
from posefoundry.models import HeadOutput
from posefoundry.training.assigner import Assignment, assign
from posefoundry.training.batch import Batch
from posefoundry.training.boxes import complete_iou

N_BINS = 16
LOSS_TERMS = ("box", "pose", "kobj", "cls", "dfl")


@dataclass(frozen=True)
class PoseLoss:
    """The loss to differentiate and its five terms, gains included, for the log."""

    total: Tensor
    terms: dict[str, Tensor]  # box, pose, kobj, cls, dfl: detached scalars
    n_positive_anchors: Tensor  # scalar, this process


class PoseCriterion:
    """Computes the loss of a batch from the raw outputs of the head.

    Args:
        n_classes: C.
        kpt_shape: K and the number of values each, 2 (x, y) or 3 (x, y, visibility).
        sigmas: (K,) of the skeleton.
        strides_px: Strides of the levels.
        gains: Weights of the terms.
        sum_over_processes: Adds a tensor up over all processes; the identity for a single one.
    """

    def __init__(
        self,
        *,
        n_classes: int,
        kpt_shape: tuple[int, int],
        sigmas: tuple[float, ...],
        strides_px: tuple[int, ...],
        gains: LossGains,
        sum_over_processes: Callable[[Tensor], Tensor] = lambda local: local,
    ) -> None:
        self.n_classes = n_classes
        self.kpt_shape = kpt_shape
        self.sigmas = torch.tensor(sigmas)
        self.min_side_px = float(strides_px[min(1, len(strides_px) - 1)])
        self.gains = gains
        self.sum_over_processes = sum_over_processes

    def __call__(self, output: HeadOutput, batch: Batch) -> PoseLoss:
        """Returns the loss of the batch; each term counts times the global number of images, as published."""
        logits = output.scores.float().transpose(1, 2)  # (B, A, C)
        box_logits = output.boxes.float().transpose(1, 2)  # (B, A, 4 * bins)
        points_xy, strides = output.anchor_points_xy.float(), output.anchor_strides_px.float()
        with torch.no_grad():  # only the few positive anchors carry a box gradient, and they are decoded again below
            boxes_xyxy = _decode_boxes(box_logits, points_xy) * strides  # (B, A, 4), px
        assignment = assign(
            logits.detach().sigmoid(),
            boxes_xyxy,
            points_xy * strides,
            batch.class_ids,
            batch.boxes_xyxy,
            batch.is_person,
            self.min_side_px,
        )
        image, anchor = assignment.is_positive.nonzero(as_tuple=True)  # (P,) each
        person = assignment.person_index[image, anchor]
        target_boxes_xyxy = batch.boxes_xyxy[image, person] / strides[anchor]
        n_images, score_sum, n_positive = self._global_counts(batch, assignment)

        terms = {
            **self._box_terms(
                box_logits[image, anchor],
                points_xy[anchor],
                target_boxes_xyxy,
                weights=assignment.scores[image, anchor].sum(-1) / score_sum,
            ),
            **self._keypoint_terms(
                output.keypoints.float().transpose(1, 2)[image, anchor],
                points_xy[anchor],
                batch.keypoints_xyv[image, person],
                strides[anchor],
                target_boxes_xyxy,
                n_positive,
            ),
            "cls": F.binary_cross_entropy_with_logits(logits, assignment.scores, reduction="sum") / score_sum,
        }
        weighted = {name: terms[name] * getattr(self.gains, name) for name in LOSS_TERMS}
        total = torch.stack(list(weighted.values())).sum() * n_images
        return PoseLoss(
            total=total,
            terms={name: term.detach() for name, term in weighted.items()},
            n_positive_anchors=assignment.is_positive.sum(),
        )

    def _global_counts(self, batch: Batch, assignment: Assignment) -> tuple[Tensor, Tensor, Tensor]:
        """Returns images, sum of target scores and positive anchors of all processes; the latter two at least 1."""
        local = torch.stack(
            [
                assignment.scores.new_tensor(float(len(batch.images))),
                assignment.scores.sum(),
                assignment.is_positive.sum().to(assignment.scores.dtype),
            ]
        )
        n_images, score_sum, n_positive = self.sum_over_processes(local).unbind()
        return n_images, score_sum.clamp(min=1), n_positive.clamp(min=1)

    def _box_terms(
        self, box_logits: Tensor, points_xy: Tensor, target_xyxy: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """CIoU and distribution focal loss (Li et al. 2020, arXiv:2006.04388) of P positive anchors, in strides."""
        boxes_xyxy = _decode_boxes(box_logits, points_xy)
        box = ((1 - complete_iou(boxes_xyxy, target_xyxy)) * weights).sum()
        distances = torch.cat([points_xy - target_xyxy[:, :2], target_xyxy[:, 2:] - points_xy], -1)
        distances = distances.clamp(0, N_BINS - 1 - 0.01)  # (P, 4): the upper neighbour must exist
        lower = distances.long()
        upper_weight = distances - lower
        log_probabilities = box_logits.view(-1, 4, N_BINS).log_softmax(-1)
        at_lower = log_probabilities.gather(-1, lower[..., None]).squeeze(-1)
        at_upper = log_probabilities.gather(-1, lower[..., None] + 1).squeeze(-1)
        dfl = -(at_lower * (1 - upper_weight) + at_upper * upper_weight).mean(-1)
        return {"box": box, "dfl": (dfl * weights).sum()}

    def _keypoint_terms(
        self,
        raw: Tensor,
        points_xy: Tensor,
        target_xyv: Tensor,
        strides: Tensor,
        target_boxes_xyxy: Tensor,
        n_positive: Tensor,
    ) -> dict[str, Tensor]:
        """1 - OKS of each keypoint (YOLO-Pose, Maji et al. 2022, arXiv:2204.06806) and its visibility."""
        n_keypoints, n_values = self.kpt_shape
        raw = raw.view(-1, n_keypoints, n_values)
        # The decoding of the families: (2 raw + anchor - 0.5) strides, with the anchor at the cell's centre.
        predicted_xy = raw[..., :2] * 2 + (points_xy - 0.5)[:, None]
        target_xy = target_xyv[..., :2] / strides[:, None]
        visible = (target_xyv[..., 2] > 0).float()  # (P, K)
        area = (target_boxes_xyxy[:, 2:] - target_boxes_xyxy[:, :2]).prod(-1, keepdim=True)
        distance_squared = (predicted_xy - target_xy).square().sum(-1)
        sigmas = self.sigmas.to(raw.device)
        exponent = distance_squared / ((2 * sigmas).square() * (area + 1e-9) * 2)
        per_keypoint = (1 - torch.exp(-exponent)) * visible
        scale = n_keypoints / visible.sum(-1, keepdim=True).clamp(min=1)
        pose = (per_keypoint * scale).sum() / (n_positive * n_keypoints)
        if n_values == 2:
            return {"pose": pose, "kobj": pose.new_zeros(())}
        kobj = F.binary_cross_entropy_with_logits(raw[..., 2], visible, reduction="sum") / (n_positive * n_keypoints)
        return {"pose": pose, "kobj": kobj}


def _decode_boxes(box_logits: Tensor, points_xy: Tensor) -> Tensor:
    """Returns (..., 4) x1, y1, x2, y2 in strides: expected distances left, top, right, bottom of each anchor."""
    bins = torch.arange(N_BINS, dtype=box_logits.dtype, device=box_logits.device)
    distances = box_logits.unflatten(-1, (4, N_BINS)).softmax(-1) @ bins
    return torch.cat([points_xy - distances[..., :2], points_xy + distances[..., 2:]], -1)
