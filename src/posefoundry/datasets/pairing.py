"""Which person of one annotator, or of one version, is which person of the other."""

from collections.abc import Sequence

import numpy as np


def box_iou_xywh(first_xywh: np.ndarray, second_xywh: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of each pair of boxes.

    Args:
        first_xywh: (N, 4) x, y, width, height.
        second_xywh: (M, 4).

    Returns:
        (N, M) 0 to 1; 0 for boxes without area.
    """
    a, b = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (first_xywh, second_xywh))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    intersection = np.clip(high - low, 0, None).prod(axis=2)
    union = a[:, 2:].prod(axis=1)[:, None] + b[:, 2:].prod(axis=1)[None] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def mutual_nearest(
    first_xywh: Sequence[Sequence[float]], second_xywh: Sequence[Sequence[float]], *, min_iou: float
) -> list[tuple[int, int]]:
    """Pairs boxes that are each other's nearest and overlap by at least `min_iou`; the others have no partner.

    Returns:
        Index pairs in order of the first; neither side comes twice.
    """
    if not len(first_xywh) or not len(second_xywh):
        return []
    iou = box_iou_xywh(np.asarray(first_xywh), np.asarray(second_xywh))
    nearest_second, nearest_first = iou.argmax(axis=1), iou.argmax(axis=0)
    return [
        (i, int(j)) for i, j in enumerate(nearest_second) if nearest_first[j] == i and iou[i, j] >= max(min_iou, 1e-9)
    ]
