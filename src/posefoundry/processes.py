"""How processes end together, and how they don't wait for ever."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

# Seconds that a process may take to save when its parent has ended.
GRACE_S = 30.0
# Tells one of several processes which process starts them.
STARTED_BY = "POSEFOUNDRY_STARTED_BY"

T = TypeVar("T")


def die_with_parent(signal_number: signal.Signals = signal.SIGKILL) -> None:
    """Asks Linux to end this process, by default at once, when the thread that started it ends."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal_number)


def die_with_starter() -> bool:
    """Binds one of several processes to the process that starts them, and ends it where that is gone already.

    Returns:
        Whether this is one of several.
    """
    starter = os.environ.pop(STARTED_BY, None)
    if starter is None:
        return False
    die_with_parent()
    if os.getppid() != int(starter):  # gone before it could be asked for
        sys.exit(1)
    return True


def stop_with_parent(grace_s: float = GRACE_S) -> None:
    """Gets SIGTERM when the parent ends, and if this process has not ended `grace_s` later, SIGKILL.

    To be called in a process that `die_with_parent` has bound to its parent already.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="stop-with-parent", daemon=True).start()
    die_with_parent(signal.SIGTERM)


class StopRequest:
    """Whether a signal has asked this process to end."""

    def __init__(self) -> None:
        self.made = False

    def __call__(self) -> bool:
        """Tells whether it has."""
        return self.made


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM and Ctrl-C into a request that the block heeds when it can; a second Ctrl-C ends it at once.

    A process among others (torchrun's) gets the same signal from the terminal and from torchrun: there, only a kill
    ends it at once.
    """
    request = StopRequest()

    def on_signal(number: int, _: FrameType | None) -> None:
        if request.made and number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        request.made = True

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def put_back_afterwards() -> Iterator[None]:
    """Puts back environment and signal handlers after what was written for a program that does nothing else."""
    environment = dict(os.environ)
    stopping = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in stopping}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def answer_within(seconds: float, question: Callable[[], T]) -> T:
    """Asks what may never return, such as a host whose link is down, in a thread that is then left behind.

    Raises:
        TimeoutError: There is no answer.
    """
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, name="question", daemon=True).start()
    return answer.result(seconds)
