"""Task-aligned assignment: which anchors learn which person (TOOD, Feng et al. 2021, arXiv:2108.07755).

Shape legend: B images, M persons an image, A anchors, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SCORE_EXPONENT = 0.5
OVERLAP_EXPONENT = 6.0
STRIDES_IN_PERSON = (2.0, 12.0)
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
    overlaps: Tensor,
    candidates: Tensor,
    class_ids: Tensor,
    *,
    keep_best: int,
    then_single: bool = False,
) -> Assignment:
    """Assigns anchors to persons by how well they already score and overlap.

    Each person wants those of its candidates with the highest score^0.5 * overlap^6, and an anchor that several
    persons want goes to the one that it overlaps most.

    Args:
        scores: (B, A, C) class probabilities.
        overlaps: (B, M, A) of each anchor's prediction with each person; what is below 0 counts as 0.
        candidates: (B, M, A) bool: the anchors that may learn a person.
        class_ids: (B, M).
        keep_best: Anchors that a person wants.
        then_single: Of the anchors that a person got, it keeps only the best.
    """
    n_images, n_anchors, n_classes = scores.shape
    overlaps = overlaps.clamp(min=0).masked_fill_(~candidates, -1)  # a candidate is above what isn't, even at 0
    own_class = class_ids[..., None].expand(-1, -1, n_anchors)
    own_scores = scores.transpose(1, 2).gather(1, own_class)  # (B, M, A)
    metric = own_scores.pow(SCORE_EXPONENT) * overlaps.pow(OVERLAP_EXPONENT)
    metric = metric.masked_fill_(~candidates, -1)

    best = metric.topk(min(keep_best, n_anchors), dim=-1).indices
    wanted = torch.zeros_like(candidates).scatter_(-1, best, True) & candidates
    contested = (wanted.sum(1, keepdim=True) > 1) & wanted
    winner = torch.zeros_like(wanted).scatter_(1, overlaps.max(1, keepdim=True).indices, True)
    wanted = torch.where(contested.any(1, keepdim=True), winner & wanted.any(1, keepdim=True), wanted)
    if then_single:
        best = metric.masked_fill(~wanted, -1).argmax(-1, keepdim=True)
        wanted &= torch.zeros_like(wanted).scatter_(-1, best, True)

    is_positive = wanted.any(1)
    person_index = wanted.to(torch.uint8).max(1).indices  # on CPUs many times as fast as argmax

    # A person's best anchor gets its best overlap as target; the others keep their proportion to it.
    metric = metric * wanted
    best_metric = metric.amax(-1, keepdim=True)
    best_overlap = (overlaps * wanted).amax(-1, keepdim=True)
    target = (metric * best_overlap / (best_metric + EPSILON)).amax(1)  # (B, A)

    positive_class = class_ids.gather(1, person_index)
    target_scores = torch.zeros((n_images, n_anchors, n_classes), dtype=scores.dtype, device=scores.device)
    target_scores.scatter_(-1, positive_class[..., None], (target * is_positive)[..., None])
    return Assignment(is_positive=is_positive, person_index=person_index, scores=target_scores)


def centres_inside(points_xy: Tensor, boxes_xyxy: Tensor, min_side_px: float) -> Tensor:
    """Tells which anchors' centres (A, 2) lie strictly inside which boxes (B, M, 4), in pixels.

    Args:
        points_xy: Centres.
        boxes_xyxy: Boxes.
        min_side_px: Boxes with a side below this are widened to it, so that a person smaller than a cell finds an
            anchor.

    Returns:
        (B, M, A) bool.
    """
    centre_xy = (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2
    half_wh = ((boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=min_side_px)) / 2
    distance = (points_xy - centre_xy[..., None, :]).abs()
    return (half_wh[..., None, :] - distance > EPSILON).all(-1)


def on_fitting_levels(
    candidates: Tensor, boxes_xyxy: Tensor, anchor_strides_px: Tensor, strides_px: tuple[int, ...]
) -> Tensor:
    """Keeps the candidates whose level suits the person's size: 2 to 12 of its strides fit the root of the box's area.

    The finest level takes all that is smaller, the coarsest all that is larger. A person without any candidate left
    keeps those that it had.

    Args:
        candidates: (B, M, A) bool.
        boxes_xyxy: (B, M, 4) px.
        anchor_strides_px: (A,).
        strides_px: Strides of the levels.
    """
    lowest, highest = (torch.full_like(anchor_strides_px, n) for n in STRIDES_IN_PERSON)
    lowest = lowest.masked_fill_(anchor_strides_px == min(strides_px), 0)
    highest = highest.masked_fill_(anchor_strides_px == max(strides_px), torch.inf)
    side_px = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).prod(-1).sqrt()[..., None]  # (B, M, 1)
    fitting = candidates & (side_px >= lowest * anchor_strides_px) & (side_px <= highest * anchor_strides_px)
    return torch.where(fitting.any(-1, keepdim=True), fitting, candidates)
