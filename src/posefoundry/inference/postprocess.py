"""From decoded model outputs to the few detections that count.

Shape legend: B images, A anchors, K keypoints of V values. A decoded output is (B, 4 + n_classes + K*V, A), see
`posefoundry.models.PoseModel`; a detection row is x1, y1, x2, y2, score, class, then the K*V keypoint values.
"""

import numpy as np
from torch import Tensor

MAX_CANDIDATES = 30_000  # per image, by score; the published limit, far above what the usual thresholds let through


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
    return [
        rows[_greedy_keep(rows[:, :4], rows[:, 5], iou, max_detections)]
        for rows in _candidates(decoded, n_classes, kpt_shape, confidence)
    ]


def best_detections(
    decoded: np.ndarray | Tensor, *, n_classes: int, kpt_shape: tuple[int, int], confidence: float, max_detections: int
) -> list[np.ndarray]:
    """Keeps the best scores as they are, for heads that name each object once.

    Arguments and result are those of `non_max_suppression`; an anchor may count once for each class.
    """
    return [rows[:max_detections] for rows in _candidates(decoded, n_classes, kpt_shape, confidence, every_class=True)]


def _candidates(
    decoded: np.ndarray | Tensor,
    n_classes: int,
    kpt_shape: tuple[int, int],
    confidence: float,
    *,
    every_class: bool = False,
) -> list[np.ndarray]:
    """Returns detection rows of each image above the confidence, best first: of each anchor's best class, or of all."""
    values = decoded.detach().float().cpu().numpy() if isinstance(decoded, Tensor) else np.asarray(decoded, np.float32)
    expected = 4 + n_classes + kpt_shape[0] * kpt_shape[1]
    if values.ndim != 3 or values.shape[1] != expected:
        raise ValueError(f"decoded must be (B, {expected}, A), got {values.shape}")
    per_image = []
    for image in values:
        class_scores = image[4 : 4 + n_classes]
        if every_class:
            class_ids, anchors = np.nonzero(class_scores >= confidence)
        else:
            class_ids = class_scores.argmax(axis=0)
            anchors = np.flatnonzero(class_scores.max(axis=0) >= confidence)
            class_ids = class_ids[anchors]
        scores = class_scores[class_ids, anchors]
        order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
        anchors, class_ids, scores = anchors[order], class_ids[order], scores[order]
        centres, half_sizes = image[:2, anchors], image[2:4, anchors] / 2
        rows = (
            centres - half_sizes,
            centres + half_sizes,
            scores[None],
            class_ids[None],
            image[4 + n_classes :, anchors],
        )
        per_image.append(np.ascontiguousarray(np.concatenate(rows).T, np.float32))
    return per_image


def _greedy_keep(boxes_xyxy: np.ndarray, class_ids: np.ndarray, iou: float, max_detections: int) -> list[int]:
    """Returns the indices that greedy suppression keeps, of boxes (N, 4) sorted best first.

    Each round takes the best box left and drops what overlaps it. That is one row of the IoU matrix a kept box, so
    memory stays linear in N and the rounds end with the last box kept.
    """
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    left = np.arange(len(boxes_xyxy))
    kept: list[int] = []
    while len(left) and len(kept) < max_detections:
        best, left = left[0], left[1:]
        kept.append(int(best))
        corner_low = np.maximum(boxes_xyxy[best, :2], boxes_xyxy[left, :2])
        corner_high = np.minimum(boxes_xyxy[best, 2:], boxes_xyxy[left, 2:])
        overlap = np.maximum(corner_high - corner_low, 0).prod(axis=1)
        # Compared without dividing: boxes without area overlap nothing.
        apart = overlap <= iou * (areas[best] + areas[left] - overlap)
        left = left[apart | (class_ids[left] != class_ids[best])]
    return kept
