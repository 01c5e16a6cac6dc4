"""Signals that ask for an end, and questions that nobody answers."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from posefoundry.processes import STARTED_BY, answer_within, put_back_afterwards, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_request(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        os.kill(os.getpid(), signal.SIGINT)


CHILD = """
import os, signal, time
from posefoundry.processes import die_with_parent, stop_with_parent
die_with_parent()
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"asked to stop\\n"))  # may come amid a print
stop_with_parent(grace_s=0.2)
print("ready", flush=True)
time.sleep(60)
print("still here", flush=True)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_a_process_is_asked_to_stop_when_its_parent_ends_and_does_not_outlive_it_for_long() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    assert parent.communicate(timeout=30)[0] == "asked to stop\n"  # the pipe ends with the child


def test_one_of_several_ends_where_the_process_that_started_them_has_gone() -> None:
    program = "from posefoundry.processes import die_with_starter as bind; print(bind(), flush=True)"

    def run(starter: dict[str, str]) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | starter, stdout=subprocess.PIPE, text=True, check=False
        )
        return done.returncode, done.stdout

    assert run({}) == (0, "False\n")
    assert run({STARTED_BY: str(os.getpid())}) == (0, "True\n")
    assert run({STARTED_BY: str(os.getppid())}) == (1, "")


def test_environment_and_handlers_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "as it was")
    before = signal.getsignal(signal.SIGTERM)
    with put_back_afterwards():
        os.environ |= {"KEPT": "changed", "NEW": "1"}
        signal.signal(signal.SIGTERM, lambda *_: None)
    assert os.environ["KEPT"] == "as it was" and "NEW" not in os.environ
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_question_is_answered_or_given_up() -> None:
    assert answer_within(5, lambda: 42) == 42
    with pytest.raises(RuntimeError, match="gone"):
        answer_within(5, lambda: throw(RuntimeError("gone")))
    never = threading.Event()
    with pytest.raises(TimeoutError):
        answer_within(0.01, never.wait)
    never.set()


def throw(error: Exception) -> None:
    raise error
