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
TASKS_AT_ONCE = 4  # of thousands of images; more no longer fit into the memory next to the processor


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
        tasks: The similarities and whom to ignore. Tasks with the same array of similarities cost less.
        thresholds: (T,) rising, above 0; at most 16.

    Returns:
        For each task two (D,) arrays of bits, one a threshold, the first lowest: right, and ignored. What is neither is
        wrong.
    """
    results = []
    for start in range(0, len(tasks), TASKS_AT_ONCE):
        some = tasks[start : start + TASKS_AT_ONCE]
        for task, right, ignored in zip(some, *_play(pairs, some, thresholds), strict=True):
            if task.outside is not None:
                ignored |= np.where(task.outside, ~right, Bits(0))
            results.append((right, ignored))
    return results


def bits_of(flags: np.ndarray) -> np.ndarray:
    """Returns (D,) bits of (T, D) flags."""
    bits = np.zeros(flags.shape[1], Bits)
    for t, row in enumerate(flags):
        bits |= row.astype(Bits) << Bits(t)
    return bits


def flags_of(bits: np.ndarray, n_thresholds: int) -> np.ndarray:
    """Returns (T, D) flags of (D,) bits."""
    flags = np.empty((n_thresholds, len(bits)), bool)
    for t in range(n_thresholds):
        np.not_equal(bits & Bits(1 << t), 0, out=flags[t])
    return flags


def stable_order(keys: np.ndarray) -> np.ndarray:
    """Returns the stable order of integers from 0, sorted by counting, sixteen bits at a time."""
    largest = int(keys.max(initial=0))
    order = np.argsort(keys.astype(np.uint16), kind="stable")  # numpy counts where there are 16 bits
    for shift in range(16, largest.bit_length(), 16):
        order = order[np.argsort((keys[order] >> shift).astype(np.uint16), kind="stable")]
    return order


@dataclass(frozen=True)
class _Choices:
    """All pairs of all tasks that reach the lowest threshold; those of a move, a detection of a task, lie together.

    Attributes:
        first: (M,) the first pair of each move.
        count: (M,) how many pairs it has.
        move: (M,) task * D + detection.
        turn: (M,) its turn.
        wanted: (P,) integers that rise with how much the person is wanted.
        terms: (P,) integers of three parts. From bit 32 on: the seat, where it is written who is taken,
            task * N + person, and for crowds the last one, which stays empty. 16 bits: all set if the person is not
            ignored. 16 bits: the thresholds that the similarity reaches.
    """

    first: np.ndarray
    count: np.ndarray
    move: np.ndarray
    turn: np.ndarray
    wanted: np.ndarray
    terms: np.ndarray


def _play(pairs: Pairs, tasks: Sequence[Task], thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lets all detections choose; returns (tasks, D) bits of the thresholds at which they are right, and ignored."""
    n_persons, n_detections = len(pairs.is_crowd), len(pairs.turn)
    right = np.zeros(len(tasks) * n_detections, Bits)
    ignored = np.zeros_like(right)
    taken = np.zeros(len(tasks) * n_persons + 1, Bits)
    choices = _choices(pairs, tasks, thresholds)
    if len(choices.move):
        moves, blocks, in_turn = _in_turns(choices)
        terms = choices.terms[in_turn]
        seat, regular, reached = terms >> 32, (terms >> 16).astype(Bits), terms.astype(Bits)
        got, found = np.zeros(len(moves), Bits), np.zeros(len(moves), Bits)
        for start, end, first_move in blocks:
            sitting = seat[start:end]
            theirs, mine = taken[sitting], got[first_move : first_move + end - start]
            takes = reached[start:end] & ~(theirs | mine)
            mine |= takes
            found[first_move : first_move + end - start] |= takes & regular[start:end]
            taken[sitting] = theirs | takes
            taken[-1] = 0
        right[choices.move[moves]] = found
        ignored[choices.move[moves]] = got ^ found
    return right.reshape(len(tasks), -1), ignored.reshape(len(tasks), -1)


def _choices(pairs: Pairs, tasks: Sequence[Task], thresholds: np.ndarray) -> _Choices:
    n_persons, n_detections = len(pairs.is_crowd), len(pairs.turn)
    bits = (2 ** np.arange(len(thresholds) + 1) - 1).astype(np.int64)
    parts, n_pairs = [], 0
    seen: dict[int, tuple[np.ndarray, ...]] = {}  # of each array of similarities
    for number, task in enumerate(tasks):
        if id(task.similarity) not in seen:
            near = np.flatnonzero(task.similarity >= thresholds[0])
            similarity, detection, person = task.similarity[near], pairs.detection[near], pairs.person[near]
            level = np.zeros(len(near), np.uint8)
            for threshold in thresholds:
                level += similarity >= threshold
            first = np.flatnonzero(np.diff(detection, prepend=-1))
            count = np.diff(np.append(first, len(near)))
            # A float64 from 0 to 1, read as an integer, keeps its order and stays below 2^62.
            seen[id(task.similarity)] = (
                first, count, detection[first], pairs.turn[detection[first]], similarity.view(np.int64), person,
                bits[level],
            )  # fmt: skip
        first, count, detection, turn, wanted, person, reached = seen[id(task.similarity)]
        seat_of = np.arange(n_persons) + number * n_persons
        seat_of[pairs.is_crowd] = len(tasks) * n_persons
        is_regular = ~task.ignored_persons
        # Regular persons come on top.
        wanted = wanted + (is_regular.astype(np.int64) << 62)[person]
        terms = reached + ((seat_of << 32) + is_regular * (0xFFFF << 16))[person]
        parts.append((first + n_pairs, count, detection + number * n_detections, turn, wanted, terms))
        n_pairs += len(person)
    return _Choices(*map(np.concatenate, zip(*parts, strict=True)))


def _in_turns(choices: _Choices) -> tuple[np.ndarray, list[tuple[int, int, int]], np.ndarray]:
    """Puts the choices in the order in which they are made: turn by turn, in a turn all first choices, then all second.

    Returns:
        (M,) moves, turn by turn, in a turn those with the most choices first, so that those with a further choice are
        always the first few; blocks of choices made at once: start, end and the place of the first one's move; and the
        (P,) pairs in that order.
    """
    most = int(choices.count.max())
    by_count = stable_order(most - choices.count)
    bounds = np.append(0, np.cumsum(np.bincount(choices.count, minlength=most + 1)[::-1]))
    # Of each pair the block; move after move, so that all blocks have the moves in the same order.
    members = np.empty(len(choices.wanted), np.int64)
    key = np.empty(len(choices.wanted), np.int64)
    done = 0
    for count, start, end in zip(range(most, 0, -1), bounds, bounds[1:], strict=False):
        moves = by_count[start:end]
        rows = slice(done, done + len(moves) * count)
        pairs = choices.first[moves] + np.arange(count)[:, None]
        members[rows].reshape(-1, count)[:] = pairs.T
        key[rows].reshape(-1, count)[:] = (choices.turn[moves] * most + _ranks(choices.wanted[pairs])).T
        done = rows.stop
    order = stable_order(key)
    sizes = np.bincount(key)
    used = np.flatnonzero(sizes)
    ends = np.cumsum(sizes[used])
    starts = ends - sizes[used]
    # Each turn begins with its moves' first choices, of which there are as many as moves.
    is_first = used % most == 0
    first_moves = np.cumsum(np.where(is_first, sizes[used], 0)) - sizes[used][is_first][np.cumsum(is_first) - 1]
    blocks = list(zip(starts.tolist(), ends.tolist(), first_moves.tolist(), strict=True))
    return by_count[stable_order(choices.turn[by_count])], blocks, members[order]


def _ranks(wanted: np.ndarray) -> np.ndarray:
    """Returns the places of (n, M) values in falling order of each column; of equals the last comes first."""
    n = len(wanted)
    if n > 12:  # so many comparisons of all with all take longer than sorting
        order = np.argsort(wanted, axis=0, kind="stable")[::-1]
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(n)[:, None], axis=0)
        return ranks
    ranks = np.zeros(wanted.shape, np.int64)
    for i in range(n):
        for j in range(i + 1, n):
            later = wanted[j] >= wanted[i]
            ranks[i] += later
            ranks[j] += ~later
    return ranks
