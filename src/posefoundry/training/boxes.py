"""Overlap of boxes for training."""

import math

import torch
from torch import Tensor

EPSILON = 1e-7


def complete_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Returns the complete IoU of boxes (CIoU, Zheng et al. 2020, arXiv:1911.08287), from -1.5 to 1.

    IoU minus the squared distance of the centres over the squared diagonal of the enclosing box, minus a term for the
    difference of aspect ratios. The weight of that last term carries no gradient, as in the paper.

    Args:
        a_xyxy: (..., 4) boxes in any unit.
        b_xyxy: (..., 4) boxes in the same unit; the leading shapes broadcast.
    """
    ax1, ay1, ax2, ay2 = a_xyxy.unbind(-1)
    bx1, by1, bx2, by2 = b_xyxy.unbind(-1)
    aw, ah, bw, bh = ax2 - ax1, ay2 - ay1 + EPSILON, bx2 - bx1, by2 - by1 + EPSILON
    intersection = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0) * (
        torch.minimum(ay2, by2) - torch.maximum(ay1, by1)
    ).clamp(min=0)
    union = aw * ah + bw * bh - intersection + EPSILON
    iou = intersection / union
    enclosing_w = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)
    enclosing_h = torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    diagonal_squared = enclosing_w.square() + enclosing_h.square() + EPSILON
    centre_distance_squared = ((bx1 + bx2 - ax1 - ax2).square() + (by1 + by2 - ay1 - ay2).square()) / 4
    aspect = (4 / math.pi**2) * (torch.atan(bw / bh) - torch.atan(aw / ah)).square()
    with torch.no_grad():
        weight = aspect / (aspect - iou + (1 + EPSILON))
    return iou - (centre_distance_squared / diagonal_squared + aspect * weight)
