"""What a reader of an evaluation's numbers must be told, in sentences."""

from collections.abc import Sequence

import numpy as np

from posefoundry.evaluation.matching import FOUND_OKS, Match, partners
from posefoundry.evaluation.oks import Evaluation

# When a flat default hides something: the median keypoint is off by more than this part of the person's scale (the
# root of its area; COCO's annotators agree on eyes to .025 and on hips to .107), and by more than a rounding error.
HIGH_AP = 0.5
LARGE_ERROR_OF_SCALE = 0.03
LARGE_ERROR_PX = 2.0
MANY_UNSEEN = 0.5  # of those whom OKS finds


def flat_sigma_warning(sigmas: Sequence[float], oks_ap: float | None, matches: list[Match]) -> str | None:
    """Warns where sigmas that nobody measured make a model look better than it is.

    Without measured sigmas, each of K keypoints gets 1/K (`Skeleton.from_names`). For few keypoints that is several
    times what people's own annotations scatter, so OKS forgives what nobody should.

    Args:
        sigmas: K, those that OKS was computed with.
        oks_ap: AP with these sigmas; None where nobody is annotated.
        matches: Persons and the detections that come closest.

    Returns:
        A sentence, or None: the sigmas are not the flat default, AP is below .5, or the error is small.
    """
    k = len(sigmas)
    if not is_flat(sigmas) or oks_ap is None or oks_ap < HIGH_AP:
        return None
    error_px, error_of_scale = _keypoint_errors(matches)
    if not error_px.size or np.median(error_px) <= LARGE_ERROR_PX or np.median(error_of_scale) <= LARGE_ERROR_OF_SCALE:
        return None
    return (
        f"The OKS AP of {oks_ap:.3f} flatters: its sigmas are the flat default 1/{k} = {1 / k:.3g} for each keypoint, "
        f"which nobody measured, and the median keypoint is {np.median(error_px):.1f} px off, "
        f"{np.median(error_of_scale):.1%} of the person's scale. Measure sigmas on persons annotated twice: "
        "posefoundry sigmas annotations=first.json second=second.json."
    )


def unseen_warning(evaluation: Evaluation, is_found: np.ndarray, min_score: float) -> str | None:
    """Warns where AP and PCK speak of different persons, because most are found by detections of a low score alone.

    Args:
        evaluation: Of all detections.
        is_found: (N,) who was found by detections with a score of `min_score` or more.
        min_score: From which score on a detection counts for PCK.

    Returns:
        A sentence, or None: of those whom any detection finds, more than half are found by such a one.
    """
    _, oks = partners(evaluation, min_score=-np.inf)
    found_at_all = oks >= FOUND_OKS
    unseen = int((found_at_all & ~is_found).sum())
    if not unseen or unseen < MANY_UNSEEN * found_at_all.sum():
        return None
    return (
        f"{unseen} of the {found_at_all.sum()} persons found (OKS of {FOUND_OKS:.2f} or more) are found by detections "
        f"with a score below {min_score:g} alone: they count for AP, but as missed for PCK, pixels and kinds of error. "
        "If these scores have a scale of their own, say with seen= from which score on a detection counts."
    )


def is_flat(sigmas: Sequence[float]) -> bool:
    """Tells whether these are the default that nobody measured, 1/K for each keypoint."""
    return all(abs(sigma - 1 / len(sigmas)) < 1e-9 for sigma in sigmas)


def _keypoint_errors(matches: list[Match]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the errors of all labelled keypoints of persons found, in px and as a part of the root of the area."""
    pixels, fractions = [], []
    for match in matches:
        if match.detection is None or match.oks < FOUND_OKS:
            continue
        truth = np.array(match.annotation["keypoints"], np.float64).reshape(-1, 3)
        guess = np.array(match.detection["keypoints"], np.float64).reshape(-1, 3)
        error = np.linalg.norm((truth - guess)[truth[:, 2] > 0, :2], axis=1)
        pixels.append(error)
        fractions.append(error / np.sqrt(match.area_px2))
    return np.concatenate(pixels or [np.empty(0)]), np.concatenate(fractions or [np.empty(0)])
