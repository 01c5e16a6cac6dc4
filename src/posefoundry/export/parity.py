"""Does an artifact compute what PyTorch computes? The largest difference of decoded outputs, in px and in score."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from posefoundry.errors import PosefoundryError

# Anchors that can become persons: those a default Predictor would keep, and the best of each image, so that a model
# that is sure of nothing is still compared where it matters.
CONFIDENT_SCORE = 0.25
BEST_ANCHORS_PER_IMAGE = 100

Infer = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The largest absolute differences between two runtimes on the same batches.

    Attributes:
        batches: Number of batches compared.
        input_shapes: The distinct shapes compared, such as `1x3x640x480` (B, 3, H, W).
        confident_anchors: Number of anchors behind the two figures that follow.
        max_error_px: Of box centre, box size and keypoints, on confident anchors.
        max_error_score: Of class scores and keypoint visibility, on confident anchors.
        max_error_px_all: As above, on every anchor.
        max_error_score_all: As above, on every anchor.
    """

    batches: int
    input_shapes: tuple[str, ...]
    confident_anchors: int
    max_error_px: float
    max_error_score: float
    max_error_px_all: float
    max_error_score_all: float

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return asdict(self)


def measure_parity(
    reference: Infer, candidate: Infer, batches: Iterable[np.ndarray], *, n_classes: int, kpt_shape: tuple[int, int]
) -> Parity:
    """Runs both on every batch and keeps the largest differences.

    Args:
        reference: Maps a batch (B, 3, H, W) to decoded predictions (B, 4 + n_classes + K*V, A).
        candidate: The same, by the artifact under test.
        batches: At least one batch, float32 RGB 0..1.
        n_classes: Number of class scores.
        kpt_shape: (K, V) with V = 2 (x, y) or 3 (x, y, visibility).

    Raises:
        PosefoundryError: The outputs differ in shape, or hold a value that is not finite.
    """
    is_px = _px_rows(n_classes, kpt_shape)
    scores = slice(4, 4 + n_classes)
    shapes: dict[str, None] = {}
    confident_anchors, count = 0, 0
    errors: dict[str, list[float]] = {"px": [], "score": [], "px_all": [], "score_all": []}
    for batch in batches:
        expected, got = reference(batch), candidate(batch)
        _require_comparable(expected, got, rows=len(is_px), input_shape=batch.shape)
        difference = np.abs(expected.astype(np.float64) - got.astype(np.float64))
        confident = _confident(expected[:, scores].max(axis=1))
        by_anchor = difference.transpose(0, 2, 1)
        errors["px"].append(_max(by_anchor[confident][:, is_px]))
        errors["score"].append(_max(by_anchor[confident][:, ~is_px]))
        errors["px_all"].append(_max(difference[:, is_px]))
        errors["score_all"].append(_max(difference[:, ~is_px]))
        confident_anchors += int(confident.sum())
        shapes["x".join(map(str, batch.shape))] = None
        count += 1
    return Parity(
        batches=count,
        input_shapes=tuple(shapes),
        confident_anchors=confident_anchors,
        **{f"max_error_{name}": _max(np.array(values)) for name, values in errors.items()},
    )


def require_parity(parity: Parity, *, max_error_px: float, artifact: str, setting: str) -> None:
    """Refuses an artifact whose confident predictions stray from PyTorch's.

    Raises:
        PosefoundryError: The error in px on confident anchors is above `max_error_px`.
    """
    if parity.max_error_px > max_error_px:
        raise PosefoundryError(
            f"{artifact}: expected predictions within {max_error_px} px of PyTorch's, got {parity.max_error_px:.4g} px "
            f"(score {parity.max_error_score:.2g}) on {parity.confident_anchors} confident anchors. Nothing was "
            f"exported; if this difference is acceptable, raise {setting}."
        )


def _require_comparable(expected: np.ndarray, got: np.ndarray, *, rows: int, input_shape: tuple[int, ...]) -> None:
    if expected.shape != got.shape or expected.shape[1] != rows:
        raise PosefoundryError(
            f"Expected {rows} rows of predictions of one shape, got {got.shape} from the artifact and {expected.shape} "
            f"from PyTorch, for an input of {input_shape}. Export the model again."
        )
    for output, name in ((expected, "PyTorch"), (got, "the artifact")):
        if not np.isfinite(output).all():
            raise PosefoundryError(
                f"Expected finite predictions, got NaN or infinity from {name} for an input of {input_shape}. "
                "Train again, or export in float32 if the model overflows float16."
            )


def _px_rows(n_classes: int, kpt_shape: tuple[int, int]) -> np.ndarray:
    """Returns (4 + n_classes + K*V,) bool: which rows of the predictions are pixels; the others are scores."""
    n_keypoints, values = kpt_shape
    keypoint = [True, True, False][:values]
    return np.array([True] * 4 + [False] * n_classes + keypoint * n_keypoints)


def _confident(scores: np.ndarray) -> np.ndarray:
    """Returns (B, A) bool for the best scores (B, A) of each anchor."""
    best = min(BEST_ANCHORS_PER_IMAGE, scores.shape[1])
    floor = -np.partition(-scores, best - 1, axis=1)[:, best - 1]
    return scores >= np.minimum(floor, CONFIDENT_SCORE)[:, None]


def _max(values: np.ndarray) -> float:
    return float(values.max(initial=0.0))
