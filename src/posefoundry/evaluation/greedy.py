"""COCO's greedy matching of detections with ground truth, for many slices at once and without a loop over images.

The rules are those of pycocotools' `COCOeval.evaluateImg`: detections choose in falling order of score; each takes the
free person of the highest similarity at or above the threshold, the later of two equals; persons that are ignored are
taken only where no other is left; a crowd can be taken any number of times; what took an ignored person, or found
nobody and lies outside the slice, is neither right nor wrong.

Most detections reach the lowest threshold with one person only. Such a person goes, at each threshold, to the first
detection that reaches it, which a running maximum tells. Only persons whose detections have a choice are played
through, detection by detection, all images of all slices in step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pairs:
    """Persons and the detections that may be theirs, sorted by person, then by falling score.

    Attributes:
        person: (P,) index of the person, 0 to N - 1.
        detection: (P,) index of the detection, 0 to D - 1, in falling order of score.
        group_of_person: (N,) number of the image and class that persons compete in.
        is_crowd: (N,) whether a person is a crowd.
        n_detections: D.
    """

    person: np.ndarray
    detection: np.ndarray
    group_of_person: np.ndarray
    is_crowd: np.ndarray
    n_detections: int


@dataclass(frozen=True)
class Task:
    """One way of looking at the pairs.

    Attributes:
        similarity: (P,) OKS or IoU, at least 0.
        ignored_persons: (N,) whom it is neither right nor wrong to find; all crowds are among them.
        outside: (D,) detections that are neither right nor wrong if they find nobody; None for none.
    """

    similarity: np.ndarray
    ignored_persons: np.ndarray
    outside: np.ndarray | None = None


@dataclass(frozen=True)
class _Choice:
    """Pairs of one task whose detections have a choice; levels count the thresholds that the similarity reaches."""

    pairs: np.ndarray  # indices into Pairs
    similarity: np.ndarray
    level: np.ndarray


def match(pairs: Pairs, tasks: Sequence[Task], thresholds: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Matches detections with persons for each task.

    Args:
        pairs: Who may be matched with whom.
        tasks: The similarities and whom to ignore.
        thresholds: (T,) rising, above 0.

    Returns:
        For each task two (T, D) flags: right, and ignored. What is neither is wrong.
    """
    results, choices = [], []
    for task in tasks:
        shape = (len(thresholds), pairs.n_detections)
        right, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
        results.append((right, ignored))
        choices.append(_match_the_unambiguous(pairs, task, thresholds, right, ignored))
    _play_through(pairs, tasks, choices, len(thresholds), results)
    for task, (right, ignored) in zip(tasks, results, strict=True):
        if task.outside is not None:
            columns = np.flatnonzero(task.outside)
            ignored[:, columns] = ~right[:, columns]
    return results


def _match_the_unambiguous(
    pairs: Pairs, task: Task, thresholds: np.ndarray, right: np.ndarray, ignored: np.ndarray
) -> _Choice:
    """Matches the persons whose detections reach nobody else, and returns the other pairs."""
    near = np.flatnonzero(task.similarity >= thresholds[0])
    person, detection, similarity = pairs.person[near], pairs.detection[near], task.similarity[near]
    level = np.searchsorted(thresholds, similarity, side="right")
    n_reached = np.bincount(detection, minlength=pairs.n_detections)
    is_disputed = np.zeros(len(pairs.is_crowd), bool)
    is_disputed[person[n_reached[detection] > 1]] = True
    disputed = is_disputed[person]
    choice = _Choice(near[disputed], similarity[disputed], level[disputed])

    person, detection, level = person[~disputed], detection[~disputed], level[~disputed]
    # The highest level that earlier detections of the same person reached. Integers, so that adding a step for each
    # person, which makes the running maximum start anew with each, is exact.
    step = person * (len(thresholds) + 1)
    reached_before = np.concatenate(([0], np.maximum.accumulate(level + step)[:-1])) if len(level) else level
    taken_up_to = np.where(pairs.is_crowd[person], 0, np.maximum(reached_before - step, 0))
    of_ignored = task.ignored_persons[person]
    for flags, chosen in ((right, ~of_ignored), (ignored, of_ignored)):
        columns, low, high = detection[chosen], taken_up_to[chosen], level[chosen]
        gains = high > low
        columns, low, high = columns[gains], low[gains], high[gains]
        for t in range(len(thresholds)):
            flags[t, columns[(low <= t) & (t < high)]] = True
    return choice


def _play_through(
    pairs: Pairs,
    tasks: Sequence[Task],
    choices: Sequence[_Choice],
    n_thresholds: int,
    results: Sequence[tuple[np.ndarray, np.ndarray]],
) -> None:
    """Lets the detections of all tasks' disputed pairs choose, the r-th of every image in the r-th round."""
    sizes = [len(choice.pairs) for choice in choices]
    if not sum(sizes):
        return
    task = np.repeat(np.arange(len(tasks)), sizes)
    index = np.concatenate([choice.pairs for choice in choices])
    person, detection = pairs.person[index], pairs.detection[index]
    is_regular = np.concatenate(
        [~t.ignored_persons[pairs.person[c.pairs]] for t, c in zip(tasks, choices, strict=True)]
    )
    similarity = np.concatenate([choice.similarity for choice in choices])
    level = np.concatenate([choice.level for choice in choices])

    n_groups = int(pairs.group_of_person.max()) + 1
    _, game = np.unique(task * n_groups + pairs.group_of_person[person], return_inverse=True)
    _, first_seat, seat = np.unique(game * len(pairs.is_crowd) + person, return_index=True, return_inverse=True)
    seat = _place_within(game[first_seat])[seat]
    _, first_move, move = np.unique(game * pairs.n_detections + detection, return_index=True, return_inverse=True)
    game_of_move = game[first_move]
    turn = _place_within(game_of_move)
    n_seats = np.zeros(game.max() + 1, np.int64)
    np.maximum.at(n_seats, game, seat + 1)

    # A float64 from 0 to 1, read as an integer, keeps its order and stays below 2^62: regular persons come on top.
    order = np.ascontiguousarray(similarity).view(np.int64) + (is_regular.astype(np.int64) << 62)
    best = np.zeros((len(game_of_move), n_thresholds), np.int16)
    n_regular = np.bincount(move, weights=is_regular, minlength=len(game_of_move)).astype(np.int16)
    width = 2
    while width < 2 * n_seats.max():
        games = np.flatnonzero((n_seats <= width) & (n_seats > width // 2 if width > 2 else True))
        if len(games):
            _play_games(games, width, game, seat, move, order, level, pairs.is_crowd[person], game_of_move, turn, best)
        width *= 2
    width_of_game = np.maximum(2, 2 ** np.ceil(np.log2(n_seats)).astype(np.int64)).astype(np.int16)
    is_right = best > (width_of_game[game_of_move] - n_regular)[:, None]
    is_ignored = (best > 0) & ~is_right
    task_of_move, column = task[first_move], detection[first_move]
    for flags_of_moves, which in ((is_right, 0), (is_ignored, 1)):
        moves, thresholds = np.nonzero(flags_of_moves)
        for number in range(len(tasks)):
            mine = task_of_move[moves] == number
            results[number][which][thresholds[mine], column[moves[mine]]] = True


def _play_games(
    games: np.ndarray,
    width: int,
    game: np.ndarray,
    seat: np.ndarray,
    move: np.ndarray,
    order: np.ndarray,
    level: np.ndarray,
    is_crowd: np.ndarray,
    game_of_move: np.ndarray,
    turn: np.ndarray,
    best: np.ndarray,
) -> None:
    """Plays games of at most `width` persons; fills `best` with 1 + the rank, among `width`, of the person taken."""
    n_thresholds = best.shape[1]
    new_game = np.full(len(turn) and int(game.max()) + 1, -1)
    new_game[games] = np.arange(len(games))
    moves = np.flatnonzero(new_game[game_of_move] >= 0)
    new_move = np.full(len(game_of_move), -1)
    new_move[moves] = np.arange(len(moves))
    mine = np.flatnonzero(new_game[game] >= 0)

    row, column = new_move[move[mine]], seat[mine]
    key = np.zeros((len(moves), width), np.int64)
    key[row, column] = order[mine]
    reach = np.zeros((len(moves), width), np.int16)
    reach[row, column] = level[mine]
    rank = np.empty((len(moves), width), np.int16)
    np.put_along_axis(
        rank, np.argsort(key, axis=1, kind="stable"), np.arange(1, width + 1, dtype=np.int16)[None], axis=1
    )
    never_taken = np.zeros((len(games), width, 1), bool)
    never_taken[new_game[game[mine]], column, 0] = is_crowd[mine]

    is_taken = np.zeros((len(games), width, n_thresholds), bool)
    threshold = np.arange(n_thresholds, dtype=np.int16)
    by_turn = np.argsort(turn[moves], kind="stable")
    ends = np.cumsum(np.bincount(turn[moves]))
    for start, end in zip((0, *ends[:-1]), ends, strict=True):
        rows = by_turn[start:end]
        where = new_game[game_of_move[moves[rows]]]
        is_free = (reach[rows][:, :, None] > threshold) & ~is_taken[where]
        value = is_free * rank[rows][:, :, None]
        highest = value.max(axis=1)
        best[moves[rows]] = highest
        is_taken[where] |= is_free & (value == highest[:, None]) & ~never_taken[where]


def _place_within(sorted_groups: np.ndarray) -> np.ndarray:
    """Returns the place of each entry within its group, from 0; equal groups lie together."""
    place = np.arange(len(sorted_groups))
    starts = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    return place - np.repeat(starts, np.diff(np.append(starts, len(sorted_groups))))
