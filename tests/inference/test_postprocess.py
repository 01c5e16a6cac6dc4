"""Non-maximum suppression against its definition."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posefoundry.inference import postprocess
from posefoundry.inference.postprocess import best_detections, non_max_suppression

KPT_SHAPE = (2, 3)


def decoded_output(boxes_cxcywh, scores, keypoints=None):
    """(N, 4), (N, n_classes) -> (1, 4 + n_classes + 6, N); keypoints are numbered by anchor."""
    scores = np.asarray(scores, np.float32)
    scores = scores[:, None] if scores.ndim == 1 else scores
    boxes = np.asarray(boxes_cxcywh, np.float32).reshape(-1, 4)
    points = np.arange(len(boxes), dtype=np.float32)[:, None].repeat(6, axis=1) if keypoints is None else keypoints
    return np.concatenate([boxes, scores, points], axis=1).T[None]


def suppress(decoded, n_classes=1, confidence=0.1, iou=0.5, max_detections=300):
    options = {"n_classes": n_classes, "kpt_shape": KPT_SHAPE, "confidence": confidence}
    return non_max_suppression(decoded, iou=iou, max_detections=max_detections, **options)


def reference_suppression(boxes_xyxy, scores, class_ids, iou):
    """The definition, box by box: keep the best, drop what overlaps it more than `iou`, go on."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept = []
    for i in order:
        if all(class_ids[i] != class_ids[j] or overlap(boxes_xyxy[i], boxes_xyxy[j]) <= iou for j in kept):
            kept.append(i)
    return kept


def overlap(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


# Whole numbers keep float32 exact, and distinct scores keep the order unique.
box = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 20), st.integers(1, 20))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(box, max_size=25),
    st.sampled_from([0.3, 0.5, 0.7]),
    st.integers(1, 3),
    st.sampled_from([1, 4, 128]),
    st.randoms(),
)
def test_equals_the_definition(corners_and_sizes, iou, n_classes, block, random):
    n = len(corners_and_sizes)
    xywh = np.array(corners_and_sizes, np.float32).reshape(n, 4)
    boxes_xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    best = np.array(random.sample(range(200, 1000), n), np.float32) / 1000
    class_ids = np.array([random.randrange(n_classes) for _ in range(n)], int)
    scores = np.zeros((n, n_classes), np.float32)
    scores[np.arange(n), class_ids] = best
    decoded = decoded_output(np.concatenate([(boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, xywh[:, 2:]], axis=1), scores)
    with mock.patch.object(postprocess, "BLOCK", block):
        (rows,) = suppress(decoded, n_classes=n_classes, iou=iou)
    kept = reference_suppression(boxes_xyxy.tolist(), best.tolist(), class_ids.tolist(), iou)
    np.testing.assert_array_equal(rows[:, :4], boxes_xyxy[kept])
    np.testing.assert_array_equal(rows[:, 4], best[kept])
    np.testing.assert_array_equal(rows[:, 5], class_ids[kept])
    np.testing.assert_array_equal(rows[:, 6], kept)  # keypoints stay with their box


def test_a_case_by_hand():
    boxes = [[10, 10, 10, 10], [12, 10, 10, 10], [40, 40, 10, 10], [11, 10, 10, 10]]  # IoU of the first two: 8 / 12
    (rows,) = suppress(decoded_output(boxes, [0.9, 0.8, 0.7, 0.05]), iou=0.5)
    assert rows[:, 4].tolist() == pytest.approx([0.9, 0.7])
    assert rows[0, :4].tolist() == [5, 5, 15, 15]
    (rows,) = suppress(decoded_output(boxes, [0.9, 0.8, 0.7, 0.05]), iou=0.7)
    assert len(rows) == 3


def test_classes_do_not_suppress_each_other():
    boxes = [[10, 10, 10, 10], [10, 10, 10, 10]]
    (rows,) = suppress(decoded_output(boxes, [[0.9, 0.0], [0.0, 0.8]]), n_classes=2)
    assert rows[:, 5].tolist() == [0, 1]


def test_the_best_come_first_and_no_more_than_asked():
    boxes = [[100 * i, 10, 10, 10] for i in range(10)]
    scores = np.linspace(0.2, 0.9, 10)
    (rows,) = suppress(decoded_output(boxes, scores), max_detections=3)
    np.testing.assert_allclose(rows[:, 4], scores[::-1][:3], rtol=1e-6)


def test_images_are_apart_and_may_be_empty():
    decoded = np.concatenate([decoded_output([[10, 10, 10, 10]], [0.9]), decoded_output([[10, 10, 10, 10]], [0.01])])
    full, empty = suppress(decoded)
    assert full.shape == (1, 12) and empty.shape == (0, 12)
    assert suppress(np.zeros((1, 11, 0), np.float32))[0].shape == (0, 12)


def test_torch_and_numpy_agree():
    decoded = decoded_output([[10, 10, 10, 10], [30, 30, 5, 5]], [0.9, 0.5])
    np.testing.assert_array_equal(suppress(torch.from_numpy(decoded))[0], suppress(decoded)[0])


def test_scores_that_are_no_number_count_as_none():
    boxes = [[10, 10, 10, 10], [30, 30, 5, 5]]
    (rows,) = suppress(decoded_output(boxes, [np.nan, 0.5]))
    assert rows[:, 4].tolist() == [0.5]


def test_heads_without_nms_keep_overlapping_boxes_and_every_class():
    decoded = decoded_output([[10, 10, 10, 10], [10, 10, 10, 10]], [[0.9, 0.4], [0.05, 0.8]])
    (rows,) = best_detections(decoded, n_classes=2, kpt_shape=KPT_SHAPE, confidence=0.1, max_detections=300)
    assert rows[:, 4].tolist() == pytest.approx([0.9, 0.8, 0.4])
    assert rows[:, 5].tolist() == [0, 1, 1]
    assert rows[:, 6].tolist() == [0, 1, 0]
    (rows,) = best_detections(decoded, n_classes=2, kpt_shape=KPT_SHAPE, confidence=0.1, max_detections=1)
    assert len(rows) == 1
