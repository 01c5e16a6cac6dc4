"""COCO's greedy matching of detections with ground truth, for many slices at once and without a loop over images.

The rules are those of pycocotools' `COCOeval.evaluateImg`: detections choose in falling order of score; each takes the
free person of the highest similarity at or above the threshold, the later of two equals; persons that are ignored are
taken only where no other is left; a crowd can be taken any number of times; what took an ignored person, or found
nobody and lies outside the slice, is neither right nor wrong.

The thresholds at which something holds are the bits of a number, so that all are played at once: whom a detection
prefers does not depend on the threshold. The first detections of all images and slices choose together, then the
second ones, and so on: images and slices do not disturb each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Bits = np.uint16


@dataclass(frozen=True)
class Pairs:
    """Detections and the persons that may be theirs; the pairs of a detection lie together, persons in their order.

    Attributes:
        person: (P,) index of the person, 0 to N - 1.
        detection: (P,) index of the detection, 0 to D - 1.
        turn: (D,) rank of the detection by falling score among those of its image and class.
        is_crowd: (N,) whether a person is a crowd.
    """

    person: np.ndarray
    detection: np.ndarray
    turn: np.ndarray
    is_crowd: np.ndarray

    def only(self, chosen: np.ndarray) -> "Pairs":
        """Returns the chosen pairs, (P,) flags or rising indices."""
        return Pairs(self.person[chosen], self.detection[chosen], self.turn, self.is_crowd)


@dataclass(frozen=True)
class Task:
    """One way of looking at the pairs.

    Attributes:
        similarity: (P,) OKS or IoU, 0 to 1.
        ignored_persons: (N,) whom it is neither right nor wrong to find; all crowds are among them.
        outside: (D,) detections that are neither right nor wrong if they find nobody; None for none.
    """

    similarity: np.ndarray
    ignored_persons: np.ndarray
    outside: np.ndarray | None = None


def match(pairs: Pairs, tasks: Sequence[Task], thresholds: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Matches detections with persons for each task.

    Args:
        pairs: Who may be matched with whom.
        tasks: The similarities and whom to ignore.
        thresholds: (T,) rising, above 0; at most 16.

    Returns:
        For each task two (T, D) flags: right, and ignored. What is neither is wrong.
    """
    right, taken_ignored = _play(pairs, tasks, thresholds)
    results = []
    for task, right_bits, ignored_bits in zip(tasks, right, taken_ignored, strict=True):
        if task.outside is not None:
            ignored_bits[task.outside] = ~right_bits[task.outside]
        results.append((_flags(right_bits, len(thresholds)), _flags(ignored_bits, len(thresholds))))
    return results


def _play(pairs: Pairs, tasks: Sequence[Task], thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lets all detections choose; returns (tasks, D) bits of the thresholds at which they are right, and ignored."""
    n_persons, n_detections = len(pairs.is_crowd), len(pairs.turn)
    near = [np.flatnonzero(task.similarity >= thresholds[0]) for task in tasks]
    task = np.repeat(np.arange(len(tasks), dtype=np.int32), [len(indices) for indices in near])
    persons = [pairs.person[indices] for indices in near]
    person, detection = np.concatenate(persons), pairs.detection[np.concatenate(near)]
    similarity = np.concatenate([t.similarity[indices] for t, indices in zip(tasks, near, strict=True)])
    is_regular = np.concatenate([~t.ignored_persons[here] for t, here in zip(tasks, persons, strict=True)])
    reached = np.concatenate(([0], 2 ** np.arange(1, len(thresholds) + 1) - 1)).astype(Bits)
    seat = task * n_persons + person  # each task has seats of its own
    move = task.astype(np.int64) * n_detections + detection

    first = np.flatnonzero(np.diff(move, prepend=-1))  # of each move's pairs
    n_choices = np.diff(np.append(first, len(move)))
    preference = _by_preference(first, n_choices, similarity, is_regular)
    seat, is_regular = seat[preference], is_regular[preference]
    free_bits = reached[np.searchsorted(thresholds, similarity, side="right")][preference]
    stays_free = pairs.is_crowd[person][preference]

    move_of = move[first]
    right = np.zeros(len(tasks) * n_detections, Bits)
    ignored = np.zeros_like(right)
    taken = np.zeros(len(tasks) * n_persons, Bits)
    for moves in _rounds(pairs.turn[move_of % n_detections], n_choices):
        found, found_ignored = np.zeros(len(moves), Bits), np.zeros(len(moves), Bits)
        # Those with the most choices come first, so that those with a further choice are always the first few.
        for choice in range(n_choices[moves[0]]):
            n = int(np.searchsorted(-n_choices[moves], -choice, side="left"))
            here = first[moves[:n]] + choice
            takes = free_bits[here] & ~taken[seat[here]] & ~(found[:n] | found_ignored[:n])
            regular = is_regular[here]
            found[:n] |= np.where(regular, takes, Bits(0))
            found_ignored[:n] |= np.where(regular, Bits(0), takes)
            taken[seat[here]] |= np.where(stays_free[here], Bits(0), takes)
        right[move_of[moves]], ignored[move_of[moves]] = found, found_ignored
    return right.reshape(len(tasks), -1), ignored.reshape(len(tasks), -1)


def _by_preference(
    first: np.ndarray, n_choices: np.ndarray, similarity: np.ndarray, is_regular: np.ndarray
) -> np.ndarray:
    """Returns the order of the pairs in which each move's stay together, the most wanted person first."""
    # A float64 from 0 to 1, read as an integer, keeps its order and stays below 2^62: regular persons come on top.
    rank = np.ascontiguousarray(similarity).view(np.int64) + (is_regular.astype(np.int64) << 62)
    order = np.arange(len(similarity))
    for count in np.unique(n_choices):
        if count > 1:
            members = first[n_choices == count][:, None] + np.arange(count)
            # Stable and turned round: of equals the last comes first.
            wanted = np.argsort(rank[members], axis=1, kind="stable")[:, ::-1]
            order[members] = np.take_along_axis(members, wanted, axis=1)
    return order


def _rounds(turn: np.ndarray, n_choices: np.ndarray) -> list[np.ndarray]:
    """Returns the moves of each turn, those with the most choices first."""
    most = int(n_choices.max(initial=0))
    key = turn * (most + 1) + (most - n_choices)
    if len(key) and key.max() < 2**16:
        key = key.astype(np.uint16)  # sorted by counting, without comparisons
    order = np.argsort(key, kind="stable")
    return [moves for moves in np.split(order, np.cumsum(np.bincount(turn))[:-1]) if len(moves)]


def _flags(bits: np.ndarray, n_thresholds: int) -> np.ndarray:
    """Returns (T, D) flags of (D,) bits."""
    flags = np.empty((n_thresholds, len(bits)), bool)
    for t in range(n_thresholds):
        np.not_equal(bits & Bits(1 << t), 0, out=flags[t])
    return flags
