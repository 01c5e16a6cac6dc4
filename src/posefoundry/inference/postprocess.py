"""From decoded model outputs to the few detections that count.

Shape legend: B images, A anchors, K keypoints of V values. A decoded output is (B, 4 + n_classes + K*V, A), see
`posefoundry.models.PoseModel`; a detection row is x1, y1, x2, y2, score, class, then the K*V keypoint values.
"""

import numpy as np
from torch import Tensor

MAX_CANDIDATES = 30_000  # per image, by score; the published limit, far above what the usual thresholds let through
BLOCK = 128  # boxes compared with each other at a time


def non_max_suppression(
    decoded: np.ndarray | Tensor,
    *,
    n_classes: int,
    kpt_shape: tuple[int, int],
    confidence: float,
    iou: float,
    max_detections: int,
) -> list[np.ndarray]:
    """Keeps the best-scoring box of each heap of overlapping ones, class by class.

    Args:
        decoded: (B, 4 + n_classes + K*V, A).
        n_classes: Number of class scores.
        kpt_shape: (K, V).
        confidence: Scores below are dropped.
        iou: Boxes of one class that overlap a better one by more are dropped.
        max_detections: Kept per image.

    Returns:
        B arrays (N, 6 + K*V) float32 in input pixels, best first.
    """
    detections = []
    for image in _images(decoded, n_classes, kpt_shape):
        anchors, class_ids = _candidates(image[4 : 4 + n_classes], confidence)
        kept = _greedy_keep(_boxes_xyxy(image, anchors), class_ids, iou, max_detections)
        detections.append(_rows(image, anchors[kept], class_ids[kept], n_classes))
    return detections


def best_detections(
    decoded: np.ndarray | Tensor, *, n_classes: int, kpt_shape: tuple[int, int], confidence: float, max_detections: int
) -> list[np.ndarray]:
    """Keeps the best scores as they are, for heads that name each object once.

    Arguments and result are those of `non_max_suppression`; an anchor may count once for each class.
    """
    detections = []
    for image in _images(decoded, n_classes, kpt_shape):
        anchors, class_ids = _candidates(image[4 : 4 + n_classes], confidence, every_class=True)
        detections.append(_rows(image, anchors[:max_detections], class_ids[:max_detections], n_classes))
    return detections


def _images(decoded: np.ndarray | Tensor, n_classes: int, kpt_shape: tuple[int, int]) -> np.ndarray:
    values = decoded.detach().float().cpu().numpy() if isinstance(decoded, Tensor) else np.asarray(decoded, np.float32)
    expected = 4 + n_classes + kpt_shape[0] * kpt_shape[1]
    if values.ndim != 3 or values.shape[1] != expected:
        raise ValueError(f"decoded must be (B, {expected}, A), got {values.shape}")
    return values


def _candidates(
    class_scores: np.ndarray, confidence: float, *, every_class: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns anchors and classes whose score reaches the confidence, best first.

    Of each anchor its best class counts, or every class.
    """
    if every_class:
        class_ids, anchors = np.nonzero(class_scores >= confidence)
    else:
        anchors = np.flatnonzero(class_scores.max(axis=0) >= confidence)
        class_ids = class_scores[:, anchors].argmax(axis=0)
    order = np.argsort(-class_scores[class_ids, anchors], kind="stable")[:MAX_CANDIDATES]
    return anchors[order], class_ids[order]


def _boxes_xyxy(image: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    centres, half_sizes = image[:2, anchors].T, image[2:4, anchors].T / 2
    return np.concatenate((centres - half_sizes, centres + half_sizes), axis=1)


def _rows(image: np.ndarray, anchors: np.ndarray, class_ids: np.ndarray, n_classes: int) -> np.ndarray:
    scores = image[4 + class_ids, anchors]
    columns = (_boxes_xyxy(image, anchors), scores[:, None], class_ids[:, None], image[4 + n_classes :, anchors].T)
    return np.concatenate(columns, axis=1, dtype=np.float32)


def _greedy_keep(boxes_xyxy: np.ndarray, class_ids: np.ndarray, iou: float, max_detections: int) -> list[int]:
    """Returns the indices that greedy suppression keeps, of boxes (N, 4) sorted best first.

    Works block by block: what overlaps a box kept earlier goes at once, and only the rest of the block is compared
    with itself. Usually the wanted number is full long before all N boxes were looked at.
    """
    kept: list[int] = []
    for start in range(0, len(boxes_xyxy), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(boxes_xyxy)))
        block = block[~_overlapping(boxes_xyxy, class_ids, block, np.array(kept, int), iou).any(axis=1)]
        overlapping = _overlapping(boxes_xyxy, class_ids, block, block, iou)
        alive = np.ones(len(block), bool)
        for position, index in enumerate(block):
            if alive[position]:
                kept.append(int(index))
                if len(kept) == max_detections:
                    return kept
                alive &= ~overlapping[position]
    return kept


def _overlapping(boxes_xyxy: np.ndarray, class_ids: np.ndarray, a: np.ndarray, b: np.ndarray, iou: float) -> np.ndarray:
    """Returns (len(a), len(b)) bool: which pairs of boxes are of one class and have an IoU above `iou`."""
    boxes_a, boxes_b = boxes_xyxy[a], boxes_xyxy[b]
    width = np.minimum(boxes_a[:, None, 2], boxes_b[:, 2]) - np.maximum(boxes_a[:, None, 0], boxes_b[:, 0])
    height = np.minimum(boxes_a[:, None, 3], boxes_b[:, 3]) - np.maximum(boxes_a[:, None, 1], boxes_b[:, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    areas_a, areas_b = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (boxes_a, boxes_b))
    # Compared without dividing, so that boxes without area overlap nothing.
    return (shared > iou * (areas_a[:, None] + areas_b - shared)) & (class_ids[a, None] == class_ids[b])
