"""Which detection speaks for which person: what histograms, keypoint errors and overlays are made from.

AP ranks all detections, also those with a score near 0. Here only those count that a user of the model gets to see.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from posefoundry.evaluation.oks import Evaluation, OksEvaluator

SEEN_CONFIDENCE = 0.25  # the Predictor's default
FOUND_OKS = 0.5  # from which a person counts as found


@dataclass(frozen=True)
class Match:
    """A person of the ground truth and the detection that comes closest.

    Attributes:
        annotation: The person.
        detection: The closest detection; None for a person that was missed.
        oks: Their object keypoint similarity, 0 to 1; 0 without a detection.
        area_px2: The area of the person that scales OKS, whichever rule it came by.
    """

    annotation: dict[str, Any]
    detection: dict[str, Any] | None
    oks: float
    area_px2: float


@dataclass(frozen=True)
class KeypointErrors:
    """How exactly each of K keypoints is placed on the persons found.

    Attributes:
        similarity: (K,) mean of exp(-d^2 / (2 area (2 sigma)^2)), a keypoint's part of OKS; NaN where none is labelled.
        error_px: (K,) median distance in pixels of the source image; NaN where none is labelled.
        count: (K,) labelled keypoints it rests on.
        persons_found: Persons with OKS >= .50, whose keypoints these are.
    """

    similarity: np.ndarray
    error_px: np.ndarray
    count: np.ndarray
    persons_found: int


def match_persons(
    evaluator: OksEvaluator,
    evaluation: Evaluation,
    detections: list[dict[str, Any]],
    min_score: float = SEEN_CONFIDENCE,
) -> list[Match]:
    """Gives each person the closest detection that is not closer to another: pairs by falling OKS, each side once.

    The detections that compete are those with a score of `min_score` or more, of an image at most the 20 with the
    highest.
    """
    partner, oks = partners(evaluation, min_score)
    matches = []
    for person in evaluator.persons:
        index = int(partner[person])
        found = None if index < 0 else detections[index]
        area_px2 = float(evaluation.truth.areas[person])
        matches.append(Match(evaluator.annotations[person], found, float(oks[person]), area_px2))
    return matches


def partners(evaluation: Evaluation, min_score: float = SEEN_CONFIDENCE) -> tuple[np.ndarray, np.ndarray]:
    """Pairs like `match_persons`, in arrays.

    Returns:
        Of the N annotations the index of the detection in the list that was given, -1 for a person that was missed and
        for who need not be found; and their OKS, 0 where there is no detection.
    """
    truth, found = evaluation.truth, evaluation.found
    pairs = evaluation.every_pair.pairs
    oks = evaluation.every_pair.oks(truth.visibility > 0)
    near = (oks > 0) & (found.scores[pairs.detection] >= min_score) & ~truth.is_ignored[pairs.person]
    candidates = np.flatnonzero(near)
    candidates = candidates[np.argsort(-oks[candidates], kind="stable")]
    partner, best = np.full(len(truth.image), -1), np.zeros(len(truth.image))
    used: set[int] = set()
    for person, detection, value in zip(
        pairs.person[candidates].tolist(), pairs.detection[candidates].tolist(), oks[candidates].tolist(), strict=True
    ):
        if partner[person] < 0 and detection not in used:
            partner[person], best[person] = found.source[detection], value
            used.add(detection)
    return partner, best


@dataclass(frozen=True)
class ImageScores:
    """How well each of I images was seen, in order of image id.

    Attributes:
        persons: (I,) who is to be found.
        false_positives: (I,) detections with a score of .25 or more, of the 20 best of their image, that found nobody
            at OKS .50 and lie on no crowd or person without keypoints.
        mean_oks: (I,) of the persons, a missed one counting 0; NaN where nobody is to be found.
        score: (I,) the persons' OKS added up, divided by persons and false positives; NaN where there is neither.
    """

    persons: np.ndarray
    false_positives: np.ndarray
    mean_oks: np.ndarray
    score: np.ndarray


def image_scores(evaluation: Evaluation, partner: np.ndarray, oks: np.ndarray) -> ImageScores:
    """Scores each image by its persons and by what was seen where nobody is.

    Args:
        evaluation: Of all detections.
        partner: (N,) as of `partners`.
        oks: (N,) likewise.
    """
    truth, found = evaluation.truth, evaluation.found
    n, must = len(truth.image_ids), ~truth.is_ignored
    right = partner[(partner >= 0) & (oks >= FOUND_OKS)]
    is_wrong = (found.scores >= SEEN_CONFIDENCE) & ~np.isin(found.source, right) & ~_on_ignored(evaluation)
    persons = np.bincount(truth.image[must], minlength=n)
    wrong = np.bincount(found.image[is_wrong], minlength=n)
    oks_sum = np.bincount(truth.image[must], oks[must], minlength=n)
    with np.errstate(invalid="ignore"):
        return ImageScores(persons, wrong, oks_sum / persons, oks_sum / (persons + wrong))


def _on_ignored(evaluation: Evaluation) -> np.ndarray:
    """Returns (D,) whether a detection lies on somebody who need not be found."""
    similarity = evaluation.every_pair
    oks = similarity.oks(evaluation.truth.visibility > 0)
    pairs = similarity.pairs
    on = np.zeros(len(evaluation.found.scores), bool)
    on[pairs.detection[(oks >= FOUND_OKS) & evaluation.truth.is_ignored[pairs.person]]] = True
    return on


def keypoint_errors(matches: list[Match], sigmas: np.ndarray) -> KeypointErrors:
    """Measures each keypoint over the persons that were found, those with OKS >= .50."""
    found = [(m.annotation, m.detection, m.area_px2) for m in matches if m.detection and m.oks >= FOUND_OKS]
    # (N, K, 3) keypoints, (N, 1) areas, (N, K) flags
    truth = np.array([a["keypoints"] for a, _, _ in found], np.float64).reshape(-1, len(sigmas), 3)
    guess = np.array([d["keypoints"] for _, d, _ in found], np.float64).reshape(-1, len(sigmas), 3)
    area = np.array([area_px2 for _, _, area_px2 in found], np.float64)[:, None]
    labelled = truth[..., 2] > 0
    distance_px = np.linalg.norm(truth[..., :2] - guess[..., :2], axis=-1)
    similarity = np.exp(-(distance_px**2) / (2 * (area + np.spacing(1)) * (2 * sigmas) ** 2))
    per_keypoint = range(len(sigmas))
    return KeypointErrors(
        similarity=np.array([_mean(similarity[labelled[:, k], k]) for k in per_keypoint]),
        error_px=np.array([_median(distance_px[labelled[:, k], k]) for k in per_keypoint]),
        count=labelled.sum(axis=0),
        persons_found=len(found),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else float("nan")
