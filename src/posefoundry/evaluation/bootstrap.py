"""Paired bootstrap over images: how much of a difference in average precision could be the luck of the test images.

Both models are judged on the same images, so a resample draws images, with replacement, for both at once (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13). Drawing an image twice means counting its
persons and detections twice, and so the cumulated counts of a resample, in order of score, are linear in how often each
image was drawn: a matrix product. The detections are cut into blocks for it.

- Cut wherever a right detection is followed by a wrong one at some threshold, a block is some wrong ones followed by
  some right ones. Precision then peaks at the ends of blocks, and the result is that of evaluating each resample anew.
- Where that would be more than `MAX_BLOCKS`, some of these cuts are left out. At COCO val size (5,000 images, 11,000
  persons) a resampled difference of APs is then off by 0.0001 (root mean square; benchmarks/bootstrap.py), when its
  standard deviation is 0.0007 for two models that differ little and 0.005 for two that were trained apart. It widens
  the intervals by 1 % at most.
- What comes after the last right detection can't raise average precision and is left out.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from posefoundry.evaluation.fast_oks import (
    RECALLS,
    THRESHOLD_OF_AP,
    SliceMatches,
    average_precision,
    mean_over_thresholds,
)
from posefoundry.machine import usable_cores

MAX_BLOCKS = 256
CHUNK = 500  # resamples at a time, so that a chunk's counts stay near the processor; results don't depend on threads

Classes = Sequence[SliceMatches]


@dataclass(frozen=True)
class Resampled:
    """Average precision of two models on one slice, and what it would be on other images of the same kind.

    Attributes:
        candidate: (T,) AP at each OKS threshold; NaN where the slice has nobody.
        production: (T,) likewise.
        differences: (R, T) candidate less production in each resample; NaN in a resample without anybody.
        persons: Persons in the slice.
        images: Images with such persons.
    """

    candidate: np.ndarray
    production: np.ndarray
    differences: np.ndarray
    persons: int
    images: int

    def of(self, metric: str) -> "Difference":
        """Returns what becomes of `oks_ap` (mean over the thresholds), `oks_ap50` or `oks_ap75`."""
        candidate, production, differences = (
            mean_over_thresholds(values, THRESHOLD_OF_AP[metric])
            for values in (self.candidate, self.production, self.differences)
        )
        return Difference(float(candidate), float(production), float(candidate - production), differences)


@dataclass(frozen=True)
class Difference:
    """One figure of two models.

    Attributes:
        candidate: The candidate's; NaN where the slice has nobody.
        production: Production's, likewise.
        value: Candidate less production.
        resampled: (R,) the same in each resample.
    """

    candidate: float
    production: float
    value: float
    resampled: np.ndarray


def resample_differences(
    slices: Mapping[str, tuple[Classes, Classes]], *, resamples: int, seed: int, workers: int | None = None
) -> dict[str, Resampled]:
    """Resamples the images and takes the difference of both models' AP in each slice, on the same resamples.

    Args:
        slices: For each slice the candidate's and production's matches, one entry a class; all over the same images.
        resamples: How many times as many images as there are are drawn with replacement.
        seed: The same seed gives the same resamples.
        workers: Threads; None: as many as there are cores. The result is the same.
    """
    plans = {name: tuple([_Plan(m) for m in model] for model in pair) for name, pair in slices.items()}
    sizes = {len(m.positives_of_image) for pair in slices.values() for model in pair for m in model}
    if len(sizes) > 1:
        raise ValueError(f"expected slices over the same images, got {sorted(sizes)} images")
    n_images = sizes.pop() if sizes else 0
    starts = range(0, resamples, CHUNK)
    seeds = np.random.SeedSequence(seed).spawn(len(starts))

    def chunk(i: int) -> dict[str, np.ndarray]:
        weights = draw_images(n_images, min(CHUNK, resamples - starts[i]), np.random.default_rng(seeds[i]))
        by_precision = {dtype: weights.astype(dtype) for dtype in (np.float32, np.float64)}
        return {name: _mean_ap(pair[0], by_precision) - _mean_ap(pair[1], by_precision) for name, pair in plans.items()}

    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        chunks = list(pool.map(chunk, range(len(starts)))) if n_images else []
    return {
        name: Resampled(
            candidate=mean_over_classes([average_precision(m) for m in pair[0]]),
            production=mean_over_classes([average_precision(m) for m in pair[1]]),
            differences=np.concatenate([part[name] for part in chunks]) if chunks else np.empty((0, 0)),
            persons=int(sum(m.positives_of_image.sum() for m in pair[0])),
            images=int(np.count_nonzero(sum(m.positives_of_image for m in pair[0]))),
        )
        for name, pair in slices.items()
    }


def draw_images(n_images: int, resamples: int, random: np.random.Generator) -> np.ndarray:
    """Returns (I, R) int64, how often each image is in each resample of as many images."""
    drawn = random.integers(0, n_images, (resamples, n_images))
    drawn += np.arange(resamples)[:, None] * n_images
    counts = np.bincount(drawn.ravel(), minlength=resamples * n_images)
    return np.ascontiguousarray(counts.reshape(resamples, n_images).T)


def resampled_precision(matches: SliceMatches, weights: np.ndarray) -> np.ndarray:
    """Returns the AP of a class in resamples.

    Args:
        matches: The class.
        weights: (I, R), how often each image is in each resample.

    Returns:
        (T, R), NaN in a resample without anybody to find.
    """
    plan = _Plan(matches)
    return plan.precision(weights.astype(plan.dtype))


def mean_over_classes(values: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the mean over those classes that have a value, as pycocotools does; NaN where none has."""
    stacked = np.stack(values)
    known = np.isfinite(stacked)
    total, count = np.where(known, stacked, 0).sum(axis=0), known.sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _mean_ap(plans: Sequence["_Plan"], weights: Mapping[Any, np.ndarray]) -> np.ndarray:
    """Returns (R, T)."""
    return mean_over_classes([plan.precision(weights[plan.dtype]) for plan in plans]).T


class _Plan:
    """A class's matches, cut into blocks: what stays the same over the resamples."""

    def __init__(self, matches: SliceMatches) -> None:
        right = matches.matched & ~matches.ignored
        wrong = ~matches.matched & ~matches.ignored
        found = np.flatnonzero(right.any(axis=0))
        end = int(found[-1]) + 1 if found.size else 0
        right, wrong, images = right[:, :end], wrong[:, :end], matches.image_index[:end]
        cuts = _cuts(right, wrong)
        self.is_exact = len(cuts) < MAX_BLOCKS
        self.dtype: Any = np.float64 if self.is_exact else np.float32
        if not self.is_exact:
            cuts = _thinned(cuts, right, wrong)
        block = np.searchsorted(cuts, np.arange(end), side="right")
        self.n_blocks, self.n_thresholds = len(cuts) + 1, len(right)
        shape = (self.n_blocks, len(matches.positives_of_image))
        self._right = _steps(right, block, images, shape, self.dtype)
        self._counted = _steps(right | wrong, block, images, shape, self.dtype)
        self._positives = matches.positives_of_image.astype(self.dtype)
        self._correction = np.zeros((self.n_thresholds, 1))
        if not self.is_exact:
            on_all = self.precision(np.ones((shape[1], 1), self.dtype))
            self._correction = average_precision(matches)[:, None] - on_all

    def precision(self, weights: np.ndarray) -> np.ndarray:
        """Returns (T, R) AP; weights are (I, R) of this plan's `dtype`."""
        persons = self._positives @ weights
        recall = self._cumulated(self._right, weights)
        precision = self._cumulated(self._counted, weights)
        np.maximum(precision, 1, out=precision)
        np.divide(recall, precision, out=precision)
        for i in range(self.n_blocks - 2, -1, -1):
            np.maximum(precision[i], precision[i + 1], out=precision[i])
        recall /= np.maximum(persons, 1)
        levels = self._levels_reached(recall)
        total = precision[0] * levels[0]
        for i in range(1, self.n_blocks):
            total += precision[i] * (levels[i] - levels[i - 1])
        ap = total.astype(np.float64) / len(RECALLS) + self._correction
        ap[:, persons == 0] = np.nan
        return ap

    def _cumulated(self, steps: Sequence[sparse.csr_matrix], weights: np.ndarray) -> np.ndarray:
        """Returns (M, T, R) counts of detections up to the end of each block."""
        counts = np.empty((self.n_blocks, self.n_thresholds, weights.shape[1]), self.dtype)
        counts[:, 0] = steps[0] @ weights
        for t in range(1, self.n_thresholds):
            counts[:, t] = counts[:, t - 1]
            if len(changed := np.flatnonzero(np.diff(steps[t].indptr))):
                counts[changed, t] += steps[t][changed] @ weights
        for i in range(1, self.n_blocks):
            counts[i] += counts[i - 1]
        return counts

    def _levels_reached(self, recall: np.ndarray) -> np.ndarray:
        """Returns how many of the 101 recall levels are reached; level 0 always is. Overwrites `recall`."""
        if self.is_exact:
            level = np.floor(recall * 100 + 1e-9).astype(np.int64)
            return level + 1 - (recall < RECALLS[level])
        recall *= 100
        recall += 1 + 1e-4  # a hundredth that was rounded down is reached nevertheless
        return np.floor(recall, out=recall)


def _cuts(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Returns the places, in rising order, before which a cut is due: a wrong one follows a right one."""
    places: set[int] = set()
    for is_right, is_wrong in zip(right, wrong, strict=True):
        counted = np.flatnonzero(is_right | is_wrong)
        falls = is_right[counted[:-1]] & is_wrong[counted[1:]]
        places.update(counted[1:][falls].tolist())
    return np.array(sorted(places), np.int64)


def _thinned(cuts: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Returns no more than `MAX_BLOCKS` - 1 of the cuts, at even steps along the curves of precision and recall.

    What a left out cut can change is the fall of precision times the recall between two neighbours that stay.
    """
    n_right, n_wrong = (np.cumsum(flags, axis=1)[:, cuts - 1] for flags in (right, wrong))
    precision = np.maximum.accumulate((n_right / np.maximum(n_right + n_wrong, 1))[:, ::-1], axis=1)[:, ::-1]
    recall = n_right / np.maximum(right.sum(axis=1, keepdims=True), 1)
    length = (recall + 1 - precision).sum(axis=0)
    first = np.arange(MAX_BLOCKS // 5)  # in any case, since few detections decide how precision begins
    even = np.searchsorted(length, np.linspace(length[0], length[-1], MAX_BLOCKS - 1 - len(first)))
    return cuts[np.unique(np.concatenate((first, even)))]


def _steps(
    flags: np.ndarray, block: np.ndarray, images: np.ndarray, shape: tuple[int, int], dtype: Any
) -> list[sparse.csr_matrix]:
    """Counts flagged detections by block and image; from the second threshold on, by how much that count changes.

    Thresholds differ in few detections, so that this is a fraction of the numbers.
    """
    steps, before = [], np.zeros(flags.shape[1], np.int8)
    for now in flags.astype(np.int8):
        change = now - before
        at = np.flatnonzero(change)
        steps.append(sparse.csr_matrix((change[at].astype(dtype), (block[at], images[at])), shape))
        before = now
    return steps
