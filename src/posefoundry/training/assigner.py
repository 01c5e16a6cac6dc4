"""Task-aligned assignment: which anchors learn which person (TOOD, Feng et al. 2021, arXiv:2108.07755).

Shape legend: B images, M persons an image, A anchors, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from posefoundry.training.boxes import complete_iou

CANDIDATES_PER_PERSON = 10
SCORE_EXPONENT = 0.5
OVERLAP_EXPONENT = 6.0
EPSILON = 1e-9


@dataclass(frozen=True)
class Assignment:
    """What each anchor is to learn."""

    is_positive: Tensor  # (B, A) bool: the anchor learns a person
    person_index: Tensor  # (B, A) int64: which of the image's M persons; 0 where not positive
    scores: Tensor  # (B, A, C) float32: soft class targets


@torch.no_grad()
def assign(
    scores: Tensor,
    predicted_boxes_xyxy: Tensor,
    anchor_points_xy: Tensor,
    class_ids: Tensor,
    boxes_xyxy: Tensor,
    is_person: Tensor,
    min_side_px: float,
) -> Assignment:
    """Assigns anchors to persons by how well they already score and overlap.

    Candidates are anchors whose centre lies in the box; each person keeps the ten with the highest
    score^0.5 * CIoU^6, and an anchor that several persons want goes to the one that it overlaps most.

    Args:
        scores: (B, A, C) class probabilities.
        predicted_boxes_xyxy: (B, A, 4) px.
        anchor_points_xy: (A, 2) px.
        class_ids: (B, M).
        boxes_xyxy: (B, M, 4) px.
        is_person: (B, M) bool, False for padding.
        min_side_px: Boxes with a side below this are widened to it when candidates are sought, so that a
            person smaller than a cell finds an anchor.
    """
    n_images, n_anchors, n_classes = scores.shape
    candidates = _centre_inside(anchor_points_xy, boxes_xyxy, min_side_px) & is_person[..., None]  # (B, M, A)

    overlaps = complete_iou(boxes_xyxy[:, :, None], predicted_boxes_xyxy[:, None]).clamp_(min=0)  # (B, M, A)
    overlaps = overlaps.masked_fill_(~candidates, -1)  # below the 0 of a candidate that does not overlap yet
    own_class = class_ids[..., None].expand(-1, -1, n_anchors)
    own_scores = scores.transpose(1, 2).gather(1, own_class)  # (B, M, A)
    metric = own_scores.pow(SCORE_EXPONENT) * overlaps.pow(OVERLAP_EXPONENT)
    metric = metric.masked_fill_(~candidates, -1)

    best = metric.topk(min(CANDIDATES_PER_PERSON, n_anchors), dim=-1).indices
    wanted = torch.zeros_like(candidates).scatter_(-1, best, True) & candidates
    contested = (wanted.sum(1, keepdim=True) > 1) & wanted
    winner = torch.zeros_like(wanted).scatter_(1, overlaps.argmax(1, keepdim=True), True)
    wanted = torch.where(contested.any(1, keepdim=True), winner & wanted.any(1, keepdim=True), wanted)

    is_positive = wanted.any(1)
    person_index = wanted.to(torch.uint8).argmax(1)

    # A person's best anchor gets its best overlap as target; the others keep their proportion to it.
    metric = metric * wanted
    best_metric = metric.amax(-1, keepdim=True)
    best_overlap = (overlaps * wanted).amax(-1, keepdim=True)
    target = (metric * best_overlap / (best_metric + EPSILON)).amax(1)  # (B, A)

    positive_class = class_ids.gather(1, person_index)
    target_scores = torch.zeros((n_images, n_anchors, n_classes), dtype=scores.dtype, device=scores.device)
    target_scores.scatter_(-1, positive_class[..., None], (target * is_positive)[..., None])
    return Assignment(is_positive=is_positive, person_index=person_index, scores=target_scores)


def _centre_inside(points_xy: Tensor, boxes_xyxy: Tensor, min_side_px: float) -> Tensor:
    """Returns (B, M, A): the anchor's centre lies strictly inside the box, widened to the least side."""
    centre_xy = (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2
    half_wh = ((boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=min_side_px)) / 2
    distance = (points_xy - centre_xy[..., None, :]).abs()
    return (half_wh[..., None, :] - distance > EPSILON).all(-1)
