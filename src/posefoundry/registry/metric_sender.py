"""Metrics on their way to MLflow: written down first, then sent, again and again until they have arrived.

A thread of its own sends, so that a slow or absent server keeps no training waiting.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from posefoundry.files import read_json, write_text_atomic

# MLflow's limit, mlflow/utils/validation.py.
MAX_METRICS_PER_BATCH = 1000
RETRY_AFTER_S = 10.0
LAST_ATTEMPT_S = 60.0


class Point(NamedTuple):
    """One value of a metric; the same point sent twice is one point."""

    key: str
    value: float
    timestamp_ms: int
    step: int


class MetricSender:
    """Sends points in order.

    Args:
        send: Takes at most 1,000 points; may raise anything.
        journal: A file that outlives this process: points that did not arrive are sent by the next sender with this
            journal, and points that came already are not taken a second time. None: this process's memory alone.
        all_again: Send also what arrived before, to another place.
    """

    def __init__(
        self, send: Callable[[list[Point]], None], journal: Path | None = None, all_again: bool = False
    ) -> None:
        self._send, self._journal = send, journal
        if journal:
            _end_last_line(journal)
        known, n_sent, self._last_steps = read_journal(journal) if journal else ([], 0, {})
        self._waiting = known if all_again else known[n_sent:]
        if all_again and journal and known:
            self._write({"sent": -n_sent})
        self._changed = threading.Condition()
        self._closing = self._is_down = False
        self._thread = threading.Thread(target=self._work, name="mlflow-metrics", daemon=True)
        self._thread.start()

    @property
    def outlives_process(self) -> bool:
        """Whether what has not arrived is kept for the next sender with this journal."""
        return self._journal is not None

    def add(self, points: Iterable[Point]) -> None:
        """Writes points down and lets them be sent; a step that an earlier process told of is passed over."""
        new = [point for point in points if point.step > self._last_steps.get(point.key, -1)]
        if not new:
            return
        with self._changed:
            self._write({"points": new})
            self._waiting += new
            self._changed.notify_all()

    def go_back(self) -> None:
        """Hears that the training has gone back and on by another way: steps told already come with other values."""
        with self._changed:
            self._last_steps.clear()
            self._write({"back": True})

    def flush(self, timeout_s: float) -> bool:
        """Waits until all has arrived, or for `timeout_s`; tells whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def close(self, timeout_s: float = LAST_ATTEMPT_S) -> list[Point]:
        """Makes a last attempt and returns what could not be sent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            return list(self._waiting)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                batch, closing = self._waiting[:MAX_METRICS_PER_BATCH], self._closing
            if not batch:
                return
            try:
                self._send(batch)
            except Exception as error:  # a store fails in as many ways as it has kinds, and none may end the training
                if not self._is_down:
                    where = self._journal or "memory"
                    print(f"MLflow: could not record metrics: {error}. They wait in {where}.", file=sys.stderr)
                self._is_down = True
                if closing:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, RETRY_AFTER_S)
                continue
            if self._is_down:
                print("MLflow: recording metrics again.", file=sys.stderr)
            self._is_down = False
            with self._changed:
                del self._waiting[: len(batch)]
                self._write({"sent": len(batch)})
                self._changed.notify_all()

    def _write(self, line: dict[str, object]) -> None:
        if self._journal is None:
            return
        try:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with self._journal.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            print(f"MLflow: {self._journal} could not be written: {error}; metrics stay in memory.", file=sys.stderr)
            self._journal = None


def _end_last_line(journal: Path) -> None:
    """Keeps what a killed process was writing, a part of a line, from spoiling the line that is written next."""
    try:
        with journal.open("rb+") as stream:
            content = stream.read()
            if content and not content.endswith(b"\n"):
                stream.write(b"\n")
    except OSError:  # there is none yet; one that cannot be written is reported at the first metric
        pass


def read_journal(path: Path) -> tuple[list[Point], int, dict[str, int]]:
    """Returns the points of a journal, how many of them, from the first, have arrived, and each metric's last step.

    That is the last since the training went back, if it did: how far it has come by the way it is on.
    """
    points: list[Point] = []
    n_sent = 0
    last_steps: dict[str, int] = {}
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return [], 0, {}
    for line in lines:
        try:
            entry = json.loads(line)
            new = [Point(*values) for values in entry.get("points", [])]
            n_sent += entry.get("sent", 0)
            if entry.get("back"):
                last_steps.clear()
        except (ValueError, TypeError, AttributeError):  # the last line of a process that was killed at writing it
            continue
        points += new
        for point in new:
            last_steps[point.key] = max(point.step, last_steps.get(point.key, point.step))
    return points, n_sent, last_steps


def write_points(path: Path, points: Sequence[Point]) -> None:
    """Writes points for `read_points`; a NaN, which a left out step has as its loss, stays one."""
    write_text_atomic(path, json.dumps(points) + "\n")


def read_points(path: Path) -> list[Point]:
    """Returns the points of a file, none where there is no file.

    Raises:
        PosefoundryError: It is not JSON.
    """
    points = [Point(*values) for values in read_json(path)] if path.is_file() else []
    return [point for point in points if point.value is not None]  # as NaN was once written


def now_ms() -> int:
    """Returns the time of a point told now."""
    return int(time.time() * 1000)
