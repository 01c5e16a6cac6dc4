"""Things to be done one after the other while others go on."""

import threading
from collections import deque
from collections.abc import Callable


class Errands:
    """Does what it is given in a thread of its own, which ends with the process at the latest."""

    def __init__(self, name: str) -> None:
        self._undone: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def add(self, errand: Callable[[], None]) -> None:
        """Has something done, after what was added before. It must not raise."""
        with self._changed:
            self._undone.append(errand)
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> int:
        """Waits until all is done, or for `timeout_s`; returns how much is not, and gives up what has not begun."""
        with self._changed:
            self._changed.wait_for(lambda: not self._undone, timeout_s)
            n_undone = len(self._undone)
            self._undone.clear()
        return n_undone

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._undone)
                errand = self._undone[0]
            errand()
            with self._changed:
                if self._undone and self._undone[0] is errand:
                    self._undone.popleft()
                self._changed.notify_all()
