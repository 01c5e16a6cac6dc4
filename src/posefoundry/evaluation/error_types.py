"""What kind of mistake a model makes, and how much AP each kind costs.

After Ronchi and Perona, Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation (ICCV 2017). Detections are
matched with persons as COCO does it, but at an OKS of .1, so that a poor pose is called a poor pose and not a false
positive and a missed person. Each labelled keypoint of a person who is matched is then one of these, by the similarity
exp(-d^2 / (2 area (2 sigma)^2)) of its place with true places:

- good: .85 or more with its own, as near as people's own annotations are to each other.
- jitter: .5 to .85 with its own.
- inversion: below .5 with its own, and .5 or more with another keypoint of the same person.
- swap: neither, and .5 or more with any keypoint of another person in the image.
- miss: none of these.

Of detections without a person, a `duplicate` has an OKS of .1 or more with somebody whom a better detection took, and
`background` with nobody; the paper counts both as background. A `missed_person` has no detection.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from posefoundry.evaluation import fast_oks
from posefoundry.evaluation.fast_oks import THRESHOLDS, KeypointSimilarity
from posefoundry.evaluation.greedy import Bits, Task, match
from posefoundry.evaluation.matching import SEEN_CONFIDENCE
from posefoundry.evaluation.oks import Evaluation
from posefoundry.evaluation.slices import ALL, split_by_class

MATCHED_OKS = 0.1
GOOD, NEAR = 0.85, 0.5  # keypoint similarity; both from the paper
KEYPOINT_TYPES = ("good", "jitter", "inversion", "swap", "miss")
UNLABELLED = -1
TAKES_CROWD = -2  # as a partner: somebody whom it is neither right nor wrong to find


def diagnose(
    evaluation: Evaluation, keypoint_names: Sequence[str], min_score: float = SEEN_CONFIDENCE
) -> dict[str, Any]:
    """Returns the content of errors.json.

    `counts` and `by_keypoint` are of what a user of the model gets to see, detections with a score of `min_score` or
    more; a person whose only detection scores less is missed there. `ap_lost` is of all detections, as AP is: by how
    much AP would be higher if errors of that kind alone were corrected, all others staying as they are. So the losses
    do not add up to what is lacking to an AP of 1. Corrected keypoints lie where they are labelled; wrong detections
    are taken away, and missed persons need not be found.

    Args:
        evaluation: Of all detections.
        keypoint_names: K names.
        min_score: From which score on a detection counts.
    """
    truth, found = evaluation.truth, evaluation.found
    partner = _partners(evaluation)
    types = _keypoint_types(evaluation, partner)
    is_seen = found.scores >= min_score
    of_seen = types[is_seen]
    counts = {name: int((of_seen == t).sum()) for t, name in enumerate(KEYPOINT_TYPES)}
    is_alone = partner == -1
    is_duplicate = is_alone & _is_near_somebody(evaluation)
    met = np.unique(partner[is_seen & (partner >= 0)])
    counts |= {
        "background": int((is_seen & is_alone & ~is_duplicate).sum()),
        "duplicate": int((is_seen & is_duplicate).sum()),
        "missed_person": int((~truth.is_ignored).sum()) - len(met),
    }
    return {
        "counts": counts,
        "ap_lost": _ap_lost(evaluation, partner, types, is_duplicate),
        "by_keypoint": {
            name: {kind: int((of_seen[:, k] == t).sum()) for t, kind in enumerate(KEYPOINT_TYPES)}
            for k, name in enumerate(keypoint_names)
        },
    }


def _partners(evaluation: Evaluation) -> np.ndarray:
    """Returns (D,) the person of each detection, by COCO's greedy matching at OKS .1; -1 where there is none."""
    truth, found, pairs = evaluation.truth, evaluation.found, evaluation.every_pair.pairs
    oks = evaluation.every_pair.oks(truth.visibility > 0)
    near = np.flatnonzero(oks >= MATCHED_OKS)
    # Detections by falling score; of each, those who must be found come first, and of these the closest.
    near = near[np.lexsort((-oks[near], truth.is_ignored[pairs.person[near]], pairs.detection[near]))]
    partner = np.full(len(found.scores), -1)
    is_taken = [False] * len(truth.image)
    is_ignored, is_crowd = truth.is_ignored.tolist(), truth.is_crowd.tolist()
    for person, detection in zip(pairs.person[near].tolist(), pairs.detection[near].tolist(), strict=True):
        if partner[detection] == -1 and not is_taken[person]:
            partner[detection] = TAKES_CROWD if is_ignored[person] else person
            is_taken[person] = not is_crowd[person]
    return partner


def _is_near_somebody(evaluation: Evaluation) -> np.ndarray:
    oks = evaluation.every_pair.oks(evaluation.truth.visibility > 0)
    pairs = evaluation.every_pair.pairs
    near = np.zeros(len(evaluation.found.scores), bool)
    near[pairs.detection[(oks >= MATCHED_OKS) & ~evaluation.truth.is_ignored[pairs.person]]] = True
    return near


def _keypoint_types(evaluation: Evaluation, partner: np.ndarray) -> np.ndarray:
    """Returns (D, K) places in `KEYPOINT_TYPES`, `UNLABELLED` where there is nothing to compare with."""
    truth, found = evaluation.truth, evaluation.found
    xy = evaluation.detections.keypoints_xy[found.source]
    types = np.full(xy.shape[:2], UNLABELLED, np.int8)
    k = np.arange(xy.shape[1])
    for rows in _parts(np.flatnonzero(partner >= 0)):
        person, guess = partner[rows], xy[rows]
        own = _similarity(evaluation, person, guess)  # (R, K guesses, K true places)
        of_same, of_any = own[:, k, k], own.max(axis=2)
        result = np.full(of_same.shape, KEYPOINT_TYPES.index("miss"), np.int8)
        result[of_any >= NEAR] = KEYPOINT_TYPES.index("inversion")
        result[of_same >= NEAR] = KEYPOINT_TYPES.index("jitter")
        result[of_same >= GOOD] = KEYPOINT_TYPES.index("good")
        types[rows] = np.where(truth.visibility[person] > 0, result, UNLABELLED)
    is_far = types == KEYPOINT_TYPES.index("miss")
    lost = np.flatnonzero(is_far.any(axis=1))
    is_swapped = np.zeros_like(is_far)
    is_swapped[lost] = _near_others(evaluation, found.image[lost], partner[lost], xy[lost])
    types[is_far & is_swapped] = KEYPOINT_TYPES.index("swap")
    return types


def _near_others(evaluation: Evaluation, image: np.ndarray, person: np.ndarray, guess_xy: np.ndarray) -> np.ndarray:
    """Returns whether keypoints lie where another person of the image, of whatever class, has any.

    Args:
        evaluation: Of all detections.
        image: (R,) place of the image of each guess.
        person: (R,) whom it was matched with.
        guess_xy: (R, K, 2) px.

    Returns:
        (R, K) flags.
    """
    truth = evaluation.truth
    near = np.zeros(guess_xy.shape[:2], bool)
    others = np.flatnonzero((truth.visibility > 0).any(axis=1) & ~truth.is_crowd)
    others = others[np.argsort(truth.image[others], kind="stable")]
    size = np.bincount(truth.image[others], minlength=len(truth.image_ids))
    start, n = np.cumsum(size) - size, size[image]
    row = np.repeat(np.arange(len(image)), n)
    other = others[start[image][row] + np.arange(len(row)) - np.repeat(np.cumsum(n) - n, n)]
    for part in _parts(np.flatnonzero(other != person[row])):
        hit = (_similarity(evaluation, other[part], guess_xy[row[part]]) >= NEAR).any(axis=2)
        np.logical_or.at(near, row[part], hit)
    return near


def _parts(indices: np.ndarray, length: int = 4096) -> list[np.ndarray]:
    """Returns indices in parts small enough for all pairs of keypoints to be in memory."""
    return [indices[i : i + length] for i in range(0, len(indices), length)]


def _similarity(evaluation: Evaluation, person: np.ndarray, guess_xy: np.ndarray) -> np.ndarray:
    """Returns (R, K, K) similarity of (R, K, 2) places with each labelled keypoint of R persons; 0 of others."""
    truth = evaluation.truth
    squared = ((guess_xy[:, :, None] - truth.keypoints_xy[person][:, None]) ** 2).sum(axis=3)
    scale = 2 * (truth.areas[person] + np.spacing(1))[:, None, None] * (2 * evaluation.sigmas) ** 2
    return np.where((truth.visibility[person] > 0)[:, None], np.exp(-squared / scale), 0.0)


def _ap_lost(
    evaluation: Evaluation, partner: np.ndarray, types: np.ndarray, is_duplicate: np.ndarray
) -> dict[str, float | None]:
    """Returns by how much AP would rise without each kind of error; None where there is nobody to find."""
    names = (*KEYPOINT_TYPES[1:], "background", "duplicate", "missed_person")
    before = evaluation.metrics["oks_ap"]
    if before is None:
        return dict.fromkeys(names)
    persons = evaluation.slicer.population(ALL).persons
    met = np.zeros(len(persons), bool)
    met[partner[partner >= 0]] = True
    is_background = (partner == -1) & ~is_duplicate
    after = {
        name: _ap(evaluation, _corrected(evaluation, partner, types == KEYPOINT_TYPES.index(name)), persons)
        for name in KEYPOINT_TYPES[1:]
    }
    as_is = evaluation.similarity
    after["background"] = _ap(evaluation, as_is, persons, without=is_background)
    after["duplicate"] = _ap(evaluation, as_is, persons, without=is_duplicate)
    after["missed_person"] = _ap(evaluation, as_is, persons & met)
    return {name: None if np.isnan(after[name]) else after[name] - before for name in names}


def _corrected(evaluation: Evaluation, partner: np.ndarray, chosen: np.ndarray) -> KeypointSimilarity:
    """Returns the similarities with the chosen keypoints, (D, K) flags, where they are labelled."""
    truth, found, detections = evaluation.truth, evaluation.found, evaluation.detections
    xy = detections.keypoints_xy.copy()
    row, k = np.nonzero(chosen)
    xy[found.source[row], k] = truth.keypoints_xy[partner[row], k]
    corrected = replace(detections, keypoints_xy=xy)
    return fast_oks.keypoint_similarity(truth, corrected, found, evaluation.sigmas, at_least=THRESHOLDS[0])


def _ap(
    evaluation: Evaluation, similarity: KeypointSimilarity, persons: np.ndarray, without: np.ndarray | None = None
) -> float:
    """Returns OKS AP, with other similarities, over other persons, or without wrong detections that (D,) flags name."""
    truth, found = evaluation.truth, evaluation.found
    oks = similarity.oks(truth.visibility > 0)
    [(right, ignored)] = match(similarity.pairs, [Task(oks, ~persons)], THRESHOLDS)
    if without is not None:
        ignored |= np.where(without, ~right, Bits(0))
    matches = split_by_class(truth, found, persons, right, ignored)
    return float(fast_oks.over_classes([fast_oks.average_precision(m) for m in matches]).mean())
