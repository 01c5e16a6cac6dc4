"""The losses of the YOLO26-pose family: two heads, OKS assignment, residual log-likelihood.

Shape legend: B images, M persons an image, A anchors, C classes, K keypoints, P positive anchors of all B images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posefoundry.config import LossGains
from posefoundry.models import HeadOutput
from posefoundry.models.flow import RealNVP
from posefoundry.skeleton import Skeleton
from posefoundry.training.assigner import Assignment, assign, centres_inside, on_fitting_levels
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
from posefoundry.training.losses.likelihood import joint_weights, residual_log_likelihood

FIRST_ONE_TO_MANY_WEIGHT = 0.8
LAST_ONE_TO_MANY_WEIGHT = 0.1
# A person's own area is about this part of its box, by which OKS is measured where nobody outlined the person.
AREA_OF_BOX = 0.53


@dataclass(frozen=True)
class _HeadRule:
    """How many anchors of a head learn a person."""

    keep_best: int
    then_single: bool


ONE_TO_MANY = _HeadRule(keep_best=10, then_single=False)
ONE_TO_ONE = _HeadRule(keep_best=7, then_single=True)


@dataclass(frozen=True)
class _Head:
    """A head's output, what its anchors are to learn, and the counts over all processes, each at least 1."""

    output: HeadOutput
    assignment: Assignment
    positives: Positives
    score_sum: Tensor
    n_positive: Tensor
    n_labelled: Tensor


class Yolo26Criterion:
    """The weighted sum of both heads' losses; the one-to-many head leads first, the one-to-one head in the end.

    Args:
        kpt_shape: K and the number of values each, 2 (x, y) or 3 (x, y, visibility).
        skeleton: Its sigmas and its keypoints' names.
        strides_px: Strides of the levels.
        gains: Weights of the terms.
        weights: Of classes and keypoints; a keypoint's in `rle` multiplies the published weight of its joint.
        flow: The model's flow; it learns with the model.
        epochs: Of the whole training.
        sum_over_processes: Adds a tensor up over all processes; the identity for a single one.
    """

    terms: tuple[str, ...] = ("box", "pose", "kobj", "cls", "l1", "rle")

    def __init__(
        self,
        *,
        kpt_shape: tuple[int, int],
        skeleton: Skeleton,
        strides_px: tuple[int, ...],
        gains: LossGains,
        weights: Weights,
        flow: RealNVP,
        epochs: int,
        sum_over_processes: SumOverProcesses = alone,
    ) -> None:
        self.kpt_shape = kpt_shape
        self.sigmas = torch.tensor(skeleton.sigmas)
        self.joint_weights = joint_weights(skeleton.keypoint_names) * weights.keypoints
        self.strides_px = strides_px
        self.min_side_px = float(strides_px[min(1, len(strides_px) - 1)])
        self.gains, self.weights = gains, weights
        self.flow = flow
        self.epochs = epochs
        self.sum_over_processes = sum_over_processes
        self._gains = torch.tensor([getattr(gains, name) for name in self.terms])
        self.one_to_many_weight = FIRST_ONE_TO_MANY_WEIGHT

    @property
    def one_to_many_weight(self) -> float:
        """The share of the one-to-many head in the loss; the other head has the rest."""
        return self._one_to_many_weight

    @one_to_many_weight.setter
    def one_to_many_weight(self, weight: float) -> None:
        self._one_to_many_weight = weight
        self._head_weights = torch.tensor([weight, 1 - weight])

    def start_epoch(self, epoch: int) -> None:
        """Shifts weight from the one-to-many to the one-to-one head, linearly from the first to the last epoch."""
        progress = epoch / max(1, self.epochs - 1)
        first, last = FIRST_ONE_TO_MANY_WEIGHT, LAST_ONE_TO_MANY_WEIGHT
        self.one_to_many_weight = first + (last - first) * progress

    def __call__(self, output: HeadOutput, batch: Batch) -> PoseLoss:
        """Returns the loss of the batch; its total counts times the global number of images, as published."""
        if output.one_to_one is None:
            raise ValueError("Expected the outputs of both heads, got one.")
        self._move_constants(output.boxes.device)
        outputs = (output, output.one_to_one)
        candidates = self._candidates(output, batch)
        pairs = candidates.nonzero(as_tuple=True)
        assignments = tuple(
            self._assign(head, batch, candidates, pairs, rule)
            for head, rule in zip(outputs, (ONE_TO_MANY, ONE_TO_ONE), strict=True)
        )
        n_images, heads = self._with_global_counts(outputs, assignments, batch)

        likelihoods = torch.stack([self._log_likelihood_loss(head) for head in heads])
        # The published loss is floored at 0. What counts is the mean of all processes, not this one's share.
        above_floor = self.sum_over_processes(likelihoods.detach().clone()) > 0
        per_head = torch.stack(
            [
                torch.stack([*self._other_losses(head, batch), likelihood * above])
                for head, likelihood, above in zip(heads, likelihoods, above_floor, strict=True)
            ]
        )  # (2, terms)
        terms = self._head_weights @ per_head * self._gains
        return PoseLoss(
            total=terms.sum() * n_images,
            terms=dict(zip(self.terms, terms.detach(), strict=True)),
            n_positive_anchors=assignments[0].is_positive.sum(),
        )

    def _move_constants(self, device: torch.device) -> None:
        """Moves them to the device where they are not there yet: a copy makes the host wait."""
        self.sigmas, self.joint_weights = self.sigmas.to(device), self.joint_weights.to(device)
        self.weights, self._gains = self.weights.to(device), self._gains.to(device)
        self._head_weights = self._head_weights.to(device)

    def _candidates(self, output: HeadOutput, batch: Batch) -> Tensor:
        """Returns (B, M, A) bool: the anchors that may learn a person, the same of both heads."""
        points_xy, strides_px = output.anchor_points_xy.float(), output.anchor_strides_px.float()
        inside = centres_inside(points_xy * strides_px, batch.boxes_xyxy, self.min_side_px)
        candidates = inside & batch.is_person[..., None]
        return on_fitting_levels(candidates, batch.boxes_xyxy, strides_px[:, 0], self.strides_px)

    @torch.no_grad()
    def _assign(
        self, output: HeadOutput, batch: Batch, candidates: Tensor, pairs: Sequence[Tensor], rule: _HeadRule
    ) -> Assignment:
        """Assigns by OKS, or by CIoU where a person has no labelled keypoint.

        `pairs` are image, person and anchor of each candidate: overlaps are computed for these alone.
        """
        image, person, anchor = pairs
        own_points_xy, own_strides_px = (
            output.anchor_points_xy.float()[anchor],
            output.anchor_strides_px.float()[anchor],
        )
        boxes_xyxy = batch.boxes_xyxy[image, person]
        distances = output.boxes.float().transpose(1, 2)[image, anchor]
        by_box = complete_iou(boxes_xyxy, boxes_from_distances(own_points_xy, distances) * own_strides_px)
        raw = output.keypoints.float().transpose(1, 2)[image, anchor].unflatten(-1, self.kpt_shape)
        keypoints_xy = (raw[..., :2] + own_points_xy[:, None]) * own_strides_px[:, None]
        by_keypoints, has_labelled = self._oks(keypoints_xy, batch.keypoints_xyv[image, person], boxes_xyxy)

        overlaps = torch.zeros(candidates.shape, device=candidates.device)
        overlaps[image, person, anchor] = torch.where(has_labelled, by_keypoints, by_box)
        scores = output.scores.float().transpose(1, 2).sigmoid()
        return assign(
            scores, overlaps, candidates, batch.class_ids, keep_best=rule.keep_best, then_single=rule.then_single
        )

    def _oks(self, predicted_xy: Tensor, keypoints_xyv: Tensor, boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
        """Returns OKS (N,) of N pairs, all in pixels, and whether there is a labelled keypoint to measure it by."""
        labelled = (keypoints_xyv[..., 2] > 0).float()
        area = AREA_OF_BOX * (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(-1, keepdim=True)
        distance_squared = (predicted_xy - keypoints_xyv[..., :2]).square().sum(-1)
        similarity = torch.exp(-distance_squared / ((2 * self.sigmas).square() * (area + 1e-9) * 2))
        n_labelled = labelled.sum(-1)
        return (similarity * labelled).sum(-1) / n_labelled.clamp(min=1), n_labelled > 0

    def _with_global_counts(
        self, outputs: tuple[HeadOutput, ...], assignments: tuple[Assignment, ...], batch: Batch
    ) -> tuple[Tensor, list[_Head]]:
        """Returns the number of images of all processes, and the heads with their targets and counts."""
        positives = [Positives.of(a, output, batch) for a, output in zip(assignments, outputs, strict=True)]
        local = [batch.boxes_xyxy.new_full((), len(batch.images))]
        for assignment, own in zip(assignments, positives, strict=True):
            local += [assignment.scores.sum(), own.labelled.new_full((), len(own)), own.labelled.sum()]
        n_images, *counts = self.sum_over_processes(torch.stack(local)).unbind()
        at_least_one = [count.clamp(min=1) for count in counts]
        return n_images, [
            _Head(outputs[i], assignments[i], positives[i], *at_least_one[3 * i : 3 * i + 3])
            for i in range(len(outputs))
        ]

    def _other_losses(self, head: _Head, batch: Batch) -> tuple[Tensor, ...]:
        """Returns box, pose, kobj, cls and l1 of a head, before gains."""
        positives = head.positives
        weights = positives.scores / head.score_sum
        distances = positives.select(head.output.boxes)
        boxes_xyxy = boxes_from_distances(positives.points_xy, distances)
        height, width = batch.images.shape[-2:]
        side_px = distances.new_full((4,), width)
        side_px[1::2] = height
        l1 = ((distances - positives.distances_ltrb()).abs() * positives.strides_px / side_px).mean(-1)
        raw = positives.select(head.output.keypoints).unflatten(-1, self.kpt_shape)
        keypoints_xy = self._keypoints_xy(raw, positives)
        logits = head.output.scores.float().transpose(1, 2)
        return (
            ((1 - complete_iou(boxes_xyxy, positives.boxes_xyxy)) * weights).sum(),
            oks_loss(keypoints_xy, positives, self.sigmas, self.weights.keypoints, head.n_positive),
            visibility_loss(raw, positives, head.n_positive),
            class_loss(logits, head.assignment, head.score_sum, self.weights.classes),
            (l1 * weights).sum(),
        )

    def _log_likelihood_loss(self, head: _Head) -> Tensor:
        """Returns this process's share of the mean over the labelled keypoints; x and y add up."""
        assert head.output.keypoint_sigmas is not None
        positives = head.positives
        raw = positives.select(head.output.keypoints).unflatten(-1, self.kpt_shape)
        logits = positives.select(head.output.keypoint_sigmas).unflatten(-1, (self.kpt_shape[0], 2))
        error_xy = self._keypoints_xy(raw, positives) - positives.keypoints_xy
        # Found once: a GPU makes the host wait for the number of them, and for each mask anew.
        labelled = positives.labelled.nonzero(as_tuple=True)
        per_coordinate = residual_log_likelihood(error_xy[labelled], logits[labelled], self.flow)
        return (per_coordinate * self.joint_weights[labelled[1], None]).sum() / head.n_labelled

    @staticmethod
    def _keypoints_xy(raw: Tensor, positives: Positives) -> Tensor:
        """Returns (P, K, 2) in strides; the family's offsets count from the cell's centre."""
        return raw[..., :2] + positives.points_xy[:, None]
