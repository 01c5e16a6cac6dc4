"""Average precision by COCO's rules (cocodataset.org/#keypoints-eval), vectorised and equal to pycocotools.

What a slice's average precision needs is gathered once in `SliceMatches`. From there AP, AR and their bootstrap cost
little.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from posefoundry.evaluation.greedy import Bits, Pairs, bits_of, flags_of, stable_order
from posefoundry.evaluation.ground_truth import Detections, GroundTruth

# As in pycocotools' Params, to the last bit.
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)  # some are a bit above i / 100
# Where each AP is taken; None is the mean over all thresholds.
THRESHOLD_OF_AP: dict[str, float | None] = {"oks_ap": None, "oks_ap50": 0.5, "oks_ap75": 0.75}
MAX_POSES_PER_IMAGE = 20  # pycocotools: Params.setKpParams
MAX_BOXES_PER_IMAGE = 100  # pycocotools: Params.setDetParams


class SliceMatches:
    """All that average precision needs of one slice and class.

    Detections are in falling order of score; among equal scores by image id, then as they were given.

    Attributes:
        image_index: (D,) place of each detection's image among the images in order of id.
        scores: (D,) scores.
        right_bits: (D,) `matched` as bits, the first threshold lowest.
        ignored_bits: (D,) `ignored` as bits.
        n_thresholds: T, at most 16.
        positives_of_image: (I,) persons of the slice in each image.
    """

    def __init__(
        self,
        image_index: np.ndarray,
        scores: np.ndarray,
        matched: np.ndarray,
        ignored: np.ndarray,
        positives_of_image: np.ndarray,
    ) -> None:
        self.image_index = image_index
        self.scores = scores
        self.right_bits = bits_of(matched)
        self.ignored_bits = bits_of(ignored)
        self.n_thresholds = len(matched)
        self.positives_of_image = positives_of_image

    @classmethod
    def of_bits(
        cls,
        image_index: np.ndarray,
        scores: np.ndarray,
        right_bits: np.ndarray,
        ignored_bits: np.ndarray,
        positives_of_image: np.ndarray,
        n_thresholds: int = len(THRESHOLDS),
    ) -> "SliceMatches":
        """Builds one from bits, as `match` returns them, without spreading them out."""
        matches = cls.__new__(cls)
        matches.image_index, matches.scores = image_index, scores
        matches.right_bits, matches.ignored_bits, matches.n_thresholds = right_bits, ignored_bits, n_thresholds
        matches.positives_of_image = positives_of_image
        return matches

    @cached_property
    def matched(self) -> np.ndarray:
        """(T, D) whether a detection is right at each of the T thresholds."""
        return flags_of(self.right_bits, self.n_thresholds)

    @cached_property
    def ignored(self) -> np.ndarray:
        """(T, D) whether it is neither right nor wrong.

        It found a crowd, a person without keypoints or one outside the slice, or it found nobody and lies outside the
        slice itself.
        """
        return flags_of(self.ignored_bits, self.n_thresholds)

    def of_images(self, chosen: np.ndarray) -> "SliceMatches":
        """Returns the part that lies in the chosen images, (I,) flags; the others hold nobody and nothing."""
        columns = np.flatnonzero(chosen[self.image_index])
        return SliceMatches.of_bits(
            image_index=self.image_index[columns],
            scores=self.scores[columns],
            right_bits=self.right_bits[columns],
            ignored_bits=self.ignored_bits[columns],
            positives_of_image=np.where(chosen, self.positives_of_image, 0),
            n_thresholds=self.n_thresholds,
        )


def precision_at_recalls(matches: SliceMatches) -> np.ndarray:
    """Returns (T, R) interpolated precision at the 101 recalls 0, .01, ... 1; NaN where there is nobody to find.

    Interpolated precision at a recall is the highest precision at that or a higher recall. Precision rises only where
    a detection is right, so only those places are looked at.
    """
    n_positives = int(matches.positives_of_image.sum())
    precision = np.zeros((matches.n_thresholds, len(RECALLS)))
    if n_positives == 0:
        return np.full_like(precision, np.nan)
    some = np.flatnonzero(matches.right_bits != 0)
    right = matches.right_bits[some]
    # Most of those who are ignored are so at all thresholds: they are counted once.
    all_bits = Bits((1 << matches.n_thresholds) - 1)
    ignored = matches.ignored_bits & all_bits
    always = ignored == all_bits
    sometimes = np.flatnonzero((ignored != 0) & ~always)
    ignored = ignored[sometimes]
    n_always = np.cumsum(always, dtype=np.int32)[some] if always.any() else np.zeros(len(some), np.int32)
    for t, row in enumerate(precision):
        chosen = np.flatnonzero(right & Bits(1 << t))
        if not len(chosen):
            continue
        places = some[chosen]
        n_right = np.arange(1, len(places) + 1)
        n_ignored = n_always[chosen] + np.searchsorted(sometimes[(ignored & Bits(1 << t)) != 0], places)
        n_wrong = places + 1 - n_right - n_ignored
        # eps as in pycocotools, and in its order of summation
        envelope = np.maximum.accumulate((n_right / (n_wrong + n_right + np.spacing(1)))[::-1])[::-1]
        first = np.searchsorted(n_right / n_positives, RECALLS, side="left")
        reached = first < len(places)
        row[reached] = envelope[first[reached]]
    return precision


def average_precision(matches: SliceMatches) -> np.ndarray:
    """Returns (T,) average precision at each threshold; NaN where there is nobody to find."""
    return precision_at_recalls(matches).mean(axis=1)


def average_recall(matches: SliceMatches) -> np.ndarray:
    """Returns (T,) recall at each threshold; NaN where there is nobody to find."""
    n_positives = int(matches.positives_of_image.sum())
    if n_positives == 0:
        return np.full(matches.n_thresholds, np.nan)
    right = matches.right_bits[matches.right_bits != 0]
    return np.array([np.count_nonzero(right & Bits(1 << t)) for t in range(matches.n_thresholds)]) / n_positives


def over_classes(values: Sequence[np.ndarray]) -> np.ndarray:
    """Averages over the classes that have somebody to find, as pycocotools does; NaN if none has."""
    known = [value for value in values if not np.isnan(value).any()]
    return np.mean(known, axis=0) if known else np.full_like(values[0], np.nan) if len(values) else np.array(np.nan)


def mean_over_thresholds(values: np.ndarray, at: float | None = None) -> np.ndarray:
    """Returns the mean of (..., T) values over all thresholds, or those at one."""
    return (values if at is None else values[..., np.isclose(THRESHOLDS, at)]).mean(axis=-1)


@dataclass(frozen=True)
class Candidates:
    """The detections that count, the best of each image and class, in falling order of score.

    Attributes:
        source: (D,) index of each in the list that was given.
        scores: (D,) scores.
        image: (D,) place of the image in order of id.
        category: (D,) place of the category in order of id.
        pairs: Each person with all of them that share image and class.
    """

    source: np.ndarray
    scores: np.ndarray
    image: np.ndarray
    category: np.ndarray
    pairs: Pairs


def candidates(truth: GroundTruth, detections: Detections, max_per_image: int) -> Candidates:
    """Picks the `max_per_image` highest scores of each image and class and pairs them with the persons there."""
    n_categories = len(truth.category_ids)
    # pycocotools strings images together in order of id, and sorts the string by score with a stable sort.
    by_image = stable_order(detections.image)
    order = by_image[np.argsort(-detections.scores[by_image], kind="stable")]
    group = (detections.image * n_categories + detections.category)[order]
    detection = stable_order(group)
    turn = np.empty_like(detection)
    turn[detection] = _places(group[detection])
    is_kept = turn < max_per_image
    kept, group, turn = order[is_kept], group[is_kept], turn[is_kept]

    # Detections and persons, group after group; those of a group by falling score, and in the order of the file.
    detection = stable_order(group)
    group_of_person = truth.image * n_categories + truth.category
    by_group = stable_order(group_of_person)
    sizes = np.bincount(group_of_person, minlength=len(truth.image_ids) * n_categories)
    starts = np.cumsum(sizes) - sizes
    n_pairs = sizes[group[detection]]
    within = np.arange(n_pairs.sum()) - np.repeat(np.cumsum(n_pairs) - n_pairs, n_pairs)
    person = by_group[np.repeat(starts[group[detection]], n_pairs) + within]
    pairs = Pairs(person, np.repeat(detection, n_pairs), turn, truth.is_crowd)
    return Candidates(kept, detections.scores[kept], detections.image[kept], detections.category[kept], pairs)


@dataclass(frozen=True)
class KeypointSimilarity:
    """How near the keypoints of pairs are.

    Attributes:
        pairs: The P pairs.
        labelled: (K, P) exp(-d^2 / (2 area (2 sigma)^2)) of each keypoint; meaningless where it is not labelled.
        of_box: (P,) the similarity that pycocotools gives pairs whose person has no labelled keypoint: the mean over
            all K keypoints, with the distance to twice the person's box instead.
    """

    pairs: Pairs
    labelled: np.ndarray
    of_box: np.ndarray

    def oks(self, labelled: np.ndarray) -> np.ndarray:
        """Returns (P,) OKS over the labelled keypoints, (N, K) flags."""
        person = self.pairs.person
        used = np.flatnonzero(labelled.any(axis=0))
        if len(used) == 1:
            return np.where(labelled[:, used[0]][person], self.labelled[used[0]], self.of_box)
        n = np.count_nonzero(labelled, axis=1)[person]
        total = np.einsum("kp,kp->p", self.labelled, labelled.T[:, person])
        return np.where(n > 0, total / np.maximum(n, 1), self.of_box)


def keypoint_similarity(
    truth: GroundTruth, detections: Detections, found: Candidates, sigmas: np.ndarray, at_least: float
) -> KeypointSimilarity:
    """Computes the similarity of all pairs that may reach OKS `at_least` over any choice of keypoints.

    A mean reaches it only if one of its terms does, so one keypoint must lie within a distance of the person that can
    be told from the extents alone. With `at_least` 0 no pair is left out.
    """
    variances = (2 * sigmas) ** 2
    scale = truth.areas + np.spacing(1)
    # Of each keypoint the x of all persons lie together in memory, and the y: (K, 2, N), and of detections that have
    # anybody in their image (K, 2, R).
    truth_xy = np.ascontiguousarray(truth.keypoints_xy.transpose(1, 2, 0))
    rows = np.flatnonzero(np.bincount(found.pairs.detection, minlength=len(found.source)))
    found_xy = detections.keypoints_xy.transpose(1, 2, 0).take(found.source[rows], axis=2)
    row = np.zeros(len(found.source), np.int64)
    row[rows] = np.arange(len(rows))
    extent = (found_xy.min(axis=0), found_xy.max(axis=0)) if found_xy.size else (np.zeros((2, 0)), np.zeros((2, 0)))

    pairs = found.pairs
    if at_least > 0:
        reach = np.sqrt(-2 * np.log(at_least) * variances.max(initial=0) * scale) * 1.001
        pairs = _within_reach(truth, truth_xy, pairs, row[pairs.detection], extent, reach)
    person, detection = pairs.person, row[pairs.detection]
    labelled = np.empty((len(sigmas), len(person)))
    of_pair = scale[person]
    for k, variance in enumerate(variances):
        dx, dy = (guess.take(detection) for guess in found_xy[k])
        dx -= truth_xy[k, 0].take(person)
        dy -= truth_xy[k, 1].take(person)
        labelled[k] = _similarity(dx, dy, variance, of_pair)
    of_box = _similarity_with_box(truth, found_xy, extent, person, detection, variances, of_pair)
    return KeypointSimilarity(pairs, labelled, of_box)


def _similarity(dx: np.ndarray, dy: np.ndarray, variance: float, scale: np.ndarray) -> np.ndarray:
    """Returns exp(-d^2 / (2 variance scale)), in pycocotools' order of division; works in `dx` and `dy`."""
    dx *= dx
    dy *= dy
    dx += dy
    dx /= variance
    dx /= scale
    dx *= -0.5
    return np.exp(dx, out=dx)


def _similarity_with_box(
    truth: GroundTruth,
    found_xy: np.ndarray,
    extent: tuple[np.ndarray, np.ndarray],
    person: np.ndarray,
    detection: np.ndarray,
    variances: np.ndarray,
    scale: np.ndarray,
) -> np.ndarray:
    """Returns (P,) `KeypointSimilarity.of_box`: 1 where all keypoints lie within twice the box."""
    low, high = (corner.T for corner in _doubled(truth.boxes_xywh))
    least, most = extent
    is_beyond = np.zeros(len(person), bool)
    for axis in (0, 1):
        is_beyond |= least[axis][detection] < low[axis][person]
        is_beyond |= most[axis][detection] > high[axis][person]
    beyond = np.flatnonzero(is_beyond)
    person, detection, scale = person[beyond], detection[beyond], scale[beyond]
    low, high = low[:, person], high[:, person]
    total = np.zeros(len(beyond))
    for xy, variance in zip(found_xy, variances, strict=True):
        dx, dy = (
            np.maximum(0, low[axis] - guess) + np.maximum(0, guess - high[axis])
            for axis, guess in enumerate((xy[0].take(detection), xy[1].take(detection)))
        )
        total += _similarity(dx, dy, variance, scale)
    of_box = np.ones(len(is_beyond))
    of_box[beyond] = total / max(1, len(variances))
    return of_box


def box_iou(truth: GroundTruth, detections: Detections, found: Candidates) -> np.ndarray:
    """Returns (P,) intersection over union of all pairs' boxes; with a crowd, over the detection's own area.

    As pycocotools' bbIou: boxes that do not overlap have 0.
    """
    person, detection = found.pairs.person, found.pairs.detection
    one, other = detections.boxes_xywh[found.source][detection].T, truth.boxes_xywh[person].T
    width, height = (
        np.minimum(one[i] + one[i + 2], other[i] + other[i + 2]) - np.maximum(one[i], other[i]) for i in (0, 1)
    )
    inside = np.where((width > 0) & (height > 0), width * height, 0.0)
    own = one[2] * one[3]
    union = np.where(truth.is_crowd[person], own, own + other[2] * other[3] - inside)
    return np.divide(inside, union, out=np.zeros_like(inside), where=inside > 0)


def _within_reach(
    truth: GroundTruth,
    truth_xy: np.ndarray,
    pairs: Pairs,
    row: np.ndarray,
    extent: tuple[np.ndarray, np.ndarray],
    reach: np.ndarray,
) -> Pairs:
    """Returns the pairs of which any keypoint may be near enough; `row` is each pair's place in the extents."""
    low, high = (corner.T for corner in _doubled(truth.boxes_xywh))
    is_labelled = (truth.visibility.T > 0)[:, None]
    low = np.minimum(low, np.where(is_labelled, truth_xy, np.inf).min(axis=0, initial=np.inf)) - reach
    high = np.maximum(high, np.where(is_labelled, truth_xy, -np.inf).max(axis=0, initial=-np.inf)) + reach
    least, most = extent
    near = np.ones(len(row), bool)
    for axis in (0, 1):
        near &= least[axis][row] <= high[axis][pairs.person]
        near &= most[axis][row] >= low[axis][pairs.person]
    return pairs.only(near)


def _doubled(boxes_xywh: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the corners of boxes with their width and height added on each side."""
    position, size = boxes_xywh[:, :2], boxes_xywh[:, 2:]
    return position - size, position + size * 2


def _places(sorted_groups: np.ndarray) -> np.ndarray:
    starts = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    return np.arange(len(sorted_groups)) - np.repeat(starts, np.diff(np.append(starts, len(sorted_groups))))
