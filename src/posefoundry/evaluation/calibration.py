"""Are scores probabilities? How often detections of a score are right (Guo et al., On Calibration, ICML 2017)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from posefoundry.evaluation.fast_oks import SliceMatches
from posefoundry.evaluation.matching import SEEN_CONFIDENCE

BIN_WIDTH = 0.05  # so that a bin begins at SEEN_CONFIDENCE
RIGHT_AT = 0  # of the OKS thresholds, the one at .50


def calibration(matches: Sequence[SliceMatches]) -> dict[str, Any]:
    """Returns the content of calibration.json.

    A detection is right if COCO's matching gives it a person at OKS .50; those that are neither right nor wrong do not
    count. The expected calibration error is the mean distance between a bin's mean score and its share of right
    detections, weighted by their number, over the detections from a score of .25: below lie the thousands that only AP
    looks at, and they would drown all others.

    Args:
        matches: Of all persons, one entry a class.
    """
    counts = [~m.ignored[RIGHT_AT] for m in matches]
    scores = np.concatenate([m.scores[c] for m, c in zip(matches, counts, strict=True)] or [np.empty(0)])
    right = np.concatenate([m.matched[RIGHT_AT][c] for m, c in zip(matches, counts, strict=True)] or [np.empty(0)])
    n_bins = round(1 / BIN_WIDTH)
    # A score that lies on an edge belongs above it, though neither may be a binary fraction.
    bin_of = np.clip(np.floor(scores / BIN_WIDTH + 1e-9).astype(np.int64), 0, n_bins - 1)
    number, score_sum, right_sum = (np.bincount(bin_of, weights, n_bins) for weights in (None, scores, right))
    bins: list[dict[str, Any]] = [
        {
            "score_low": round(b * BIN_WIDTH, 2),
            "score_high": round((b + 1) * BIN_WIDTH, 2),
            "detections": int(number[b]),
            "mean_score": float(score_sum[b] / number[b]) if number[b] else None,
            "fraction_right": float(right_sum[b] / number[b]) if number[b] else None,
        }
        for b in range(n_bins)
    ]
    seen = [b for b in bins if b["detections"] and b["score_low"] >= SEEN_CONFIDENCE]
    total = sum(b["detections"] for b in seen)
    off = sum(b["detections"] * abs(b["mean_score"] - b["fraction_right"]) for b in seen)
    return {"bins": bins, "expected_calibration_error": off / total if total else None}
