"""A process that stalls is named, and the job ends, instead of all waiting for ever in the next collective.

Each process notes what it does in a `Progress`. A thread of each, the watch, publishes the note in the store that all
share, with a count that shows that the process itself still runs, and reads the others'. Times are taken by each
watch's own clock, from when it saw a note change: clocks of different hosts are not compared. All processes go through
the same phases in the same order, so of those that have stopped moving, the one in the earliest phase keeps the others.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from posefoundry.errors import PosefoundryError
from posefoundry.processes import answer_within

PACKAGE_FOLDER = str(Path(__file__).parents[1])
# Processes that stopped within this last share of the time limit have stopped together.
SAME_TIME = 0.75
# Seconds for what has to be said before the end, such as to a tracking server that may be what stalls.
LAST_WORDS_S = 10.0
# Seconds to find out whether another process of this host has told of the stall.
ASK_S = 3.0


class Progress:
    """What a process does: a phase that all its peers reach too, in the same order, and signs of life within it."""

    def __init__(self) -> None:
        self.phase = 0
        self.doing = "starting"
        self.beats = 0

    def reach(self, doing: str) -> None:
        """Notes the next phase; to be called alike in every process."""
        self.phase, self.doing = self.phase + 1, doing

    def beat(self) -> None:
        """Gives a sign of life in a long phase, as often as it likes."""
        self.beats += 1

    @contextmanager
    def waiting_for_peers(self, doing: str) -> Iterator[None]:
        """Notes that this process has done its part, and waits; then goes on with what it did."""
        before = self.doing
        self.reach(doing)
        yield
        self.reach(before)


@dataclass(frozen=True)
class Note:
    """What one process last published."""

    phase: int
    beats: int
    doing: str
    where: str  # file:line of the package that its main thread is in
    alive: int  # counted by its watch
    host: str
    pid: int
    done: bool = False


class Store(Protocol):
    """What the watch needs of a c10d store."""

    def set(self, key: str, value: str, /) -> None:
        """Writes a value."""
        ...

    def get(self, key: str, /) -> bytes:
        """Reads a value."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Tells whether all keys are there."""
        ...

    def add(self, key: str, amount: int, /) -> int:
        """Adds to a counter and returns it."""
        ...


class StallWatch:
    """Watches all processes of a training from one of them.

    Args:
        store: Shared by all; used by one thread at a time.
        progress: Of this process.
        rank: Of this process.
        n_processes: Of all hosts.
        timeout_s: A process that does not move for so long has stalled.
        clock: Seconds; monotonic.
    """

    def __init__(
        self,
        store: Store,
        progress: Progress,
        rank: int,
        n_processes: int,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.progress, self.rank, self.n_processes = store, progress, rank, n_processes
        self.timeout_s, self.clock = timeout_s, clock
        self.alive = 0
        self.notes: dict[int, Note] = {}
        self.moved_at = dict.fromkeys(range(n_processes), clock())
        self.seen_alive_at = dict(self.moved_at)
        self.heard_at = clock()
        self._main_thread = threading.main_thread().ident

    def look(self) -> str | None:
        """Publishes this process's note and reads all; returns a sentence that names who has stalled, if any has."""
        try:
            answer_within(self.timeout_s, self._exchange)
            self.heard_at = self.clock()
        except (RuntimeError, TimeoutError) as error:  # the store of c10d has no narrower one
            if isinstance(error, TimeoutError) or self.clock() - self.heard_at > self.timeout_s:
                why = str(error) or "look at the network between the hosts"
                where = os.environ.get("MASTER_ADDR", "this host")
                return f"the processes' common store, on {where}, has not answered for {self.timeout_s:g} s: {why}"
            return None
        return self._verdict()

    def _exchange(self) -> None:
        self._publish()
        for rank in range(self.n_processes):
            self._read(rank)

    def leave(self) -> None:
        """Tells the others that this process has ended well and is not to be missed."""
        with suppress(RuntimeError, TimeoutError):
            answer_within(ASK_S, lambda: self._publish(done=True))

    def is_first_to_tell(self) -> bool:
        """True in one process of each host, so that each host's output has the verdict once."""
        try:
            return answer_within(ASK_S, lambda: self.store.add(f"told/{socket.gethostname()}", 1)) == 1
        except (RuntimeError, TimeoutError):
            return True

    def _publish(self, *, done: bool = False) -> None:
        self.alive += 1
        note = Note(
            phase=self.progress.phase,
            beats=self.progress.beats,
            doing=self.progress.doing,
            where=_place(sys._current_frames().get(self._main_thread or 0)),
            alive=self.alive,
            host=socket.gethostname(),
            pid=os.getpid(),
            done=done,
        )
        self.store.set(f"note/{self.rank}", json.dumps(asdict(note)))

    def _read(self, rank: int) -> None:
        key = f"note/{rank}"
        if not self.store.check([key]):
            return
        note, before, now = Note(**json.loads(self.store.get(key))), self.notes.get(rank), self.clock()
        if before is None or (note.phase, note.beats) != (before.phase, before.beats):
            self.moved_at[rank] = now
        if before is None or note.alive != before.alive:
            self.seen_alive_at[rank] = now
        self.notes[rank] = note

    def _verdict(self) -> str | None:
        now = self.clock()
        still_s = {
            rank: now - moved_at
            for rank, moved_at in self.moved_at.items()
            if rank not in self.notes or not self.notes[rank].done
        }
        if not any(seconds > self.timeout_s for seconds in still_s.values()):
            return None
        # Who stands with the first one is seen by a watch a moment later.
        stalled = [rank for rank, seconds in still_s.items() if seconds > SAME_TIME * self.timeout_s]
        if unheard := [f"rank {rank}" for rank in stalled if rank not in self.notes]:
            return f"{', '.join(unheard)}: nothing heard for {self.timeout_s:g} s"
        if frozen := [rank for rank in stalled if now - self.seen_alive_at[rank] > self.timeout_s / 2]:
            return self._name(frozen, "its whole process or host stands still or cannot be reached")
        earliest = min(note.phase for note in self.notes.values() if not note.done)
        last = [rank for rank in stalled if self.notes[rank].phase == earliest]
        if not last:  # the one that all wait for moves, if slowly
            return None
        if len(last) == len(still_s):
            return self._name(last, "all stand in the same place: look at the network between the hosts")
        return self._name(last, "the others wait for it")

    def _name(self, ranks: list[int], why: str) -> str:
        named = [
            f"rank {rank} ({note.host}, process {note.pid}; {note.doing}; {note.where})"
            for rank, note in ((rank, self.notes[rank]) for rank in ranks)
        ]
        return f"{', '.join(named)} {'has' if len(ranks) == 1 else 'have'} not moved for {self.timeout_s:g} s; {why}"


@contextmanager
def watch_for_stalls(
    store: Store, progress: Progress, rank: int, n_processes: int, timeout_s: float,
    last_words: Callable[[str], None] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Watches in a thread while the block runs; a stall ends this process with the exit status of a told fault.

    Args:
        store: Shared by all processes; this connection is the watch's alone.
        progress: Of this process.
        rank: Of this process.
        n_processes: Of all hosts.
        timeout_s: A process that does not move for so long has stalled.
        last_words: Called with the verdict before the end.
    """
    watch = StallWatch(store, progress, rank, n_processes, timeout_s)
    watch.look()
    done = threading.Event()

    def run() -> None:
        while not done.wait(min(5.0, timeout_s / 10)):
            verdict = watch.look()
            if verdict is not None and not done.is_set():
                _end(f"Training stalled: {verdict}. The job ends.", watch.is_first_to_tell(), last_words)

    thread = threading.Thread(target=run, name="stall watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        # A thread that comes back from the store while Python ends makes the process abort.
        thread.join(LAST_WORDS_S)
    if not thread.is_alive():
        watch.leave()


def _end(message: str, tells: bool, last_words: Callable[[str], None] | None) -> None:
    """The main thread cannot be woken from a collective, so the process ends from here."""
    if tells:
        print(f"train: {message}", file=sys.stderr, flush=True)
    if last_words is not None:
        speaking = threading.Thread(target=last_words, args=(message,), daemon=True)
        speaking.start()
        speaking.join(LAST_WORDS_S)
    os._exit(PosefoundryError.exit_status)


def _place(frame: FrameType | None) -> str:
    """Returns the innermost line of this package in a stack."""
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE_FOLDER):
        frame = frame.f_back
    if frame is None:
        return "outside of posefoundry"
    file = frame.f_code.co_filename.removeprefix(PACKAGE_FOLDER).lstrip(os.sep)
    return f"{file}:{frame.f_lineno} in {frame.f_code.co_name}"
