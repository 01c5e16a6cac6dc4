"""Starting a training's processes, on one host or several, and starting them again when one is lost.

This is what torchrun is made of (an elastic agent on each host, met by c10d rendezvous), with what torchrun lacks: the
host that the rendezvous names is the one of rank 0, which writes; hosts with different parameters refuse to train
together; a fault that would happen again (exit status 2: its message explains it) ends the job on all hosts, also
where a process stands still, while a lost process costs one of `train.max_restarts`; and a host that is gone is named.
"""

import hashlib
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from torch._C._distributed_c10d import Store
from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, SubprocessContext
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousInfo,
    RendezvousParameters,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError, StoppedError
from posefoundry.machine import usable_cores
from posefoundry.processes import STARTED_BY, answer_within
from posefoundry.training.distributed import ATTEMPT, FIRST_RANK, LOST_PEER_STATUS
from posefoundry.training.meeting import RENDEZVOUS, Meeting, find_meeting, interface_of

T = TypeVar("T")

JOIN_TIMEOUT_S = 600
# Seconds after which a host that does not answer a question counts as gone.
ANSWER_TIMEOUT_S = 60.0
# Seconds that workers get to say what they know when another host has ended the training; the stall watch's last words
# take ten at most.
LAST_WORDS_S = 15.0
# Seconds for an answer that only the end waits for.
LAST_HEARTBEAT_S = 5.0
# In the store of an attempt: the host that has ended the training for good.
ENDED_BY = "ended by"
MONITOR_INTERVAL_S = 0.1
# What torch's agent logs of signals and exit codes, the messages here say in words.
AGENT_LOGS = tuple(f"torch.distributed.elastic.{part}.api" for part in ("agent.server", "multiprocessing"))
STOPPED = "stopped by a signal; the next run goes on from the last checkpoint."


def run_processes(command: Sequence[str], settings: Train) -> None:
    """Runs a command once a process of this host, together with the other hosts', until all have ended well.

    Args:
        command: Program and arguments.
        settings: Section `train`: nodes, processes of each, how often a lost process may be replaced.

    Raises:
        StoppedError: A signal asked for the end.
        PosefoundryError: A process failed for good, another host gave up, or the hosts did not find each other.
    """
    for name in AGENT_LOGS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    meeting = find_meeting(settings.nodes, os.environ)
    os.environ[STARTED_BY] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_a_process(settings.processes)))
    if interface := interface_of(meeting.own_address):
        # Gloo and NCCL would otherwise take what the host's name resolves to, often the loopback.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # without the sign eth1 would stand for eth10 too
    try:
        agent = _agent(command, settings, meeting)
    except RendezvousError as error:
        raise PosefoundryError(_not_met(settings, meeting, error)) from None
    try:
        result = _run(agent)
    except RendezvousClosedError:
        raise PosefoundryError(
            f"{agent.ended_by()} has ended this training; its output tells why. Start all hosts again."
        ) from None
    except RendezvousError as error:
        raise PosefoundryError(_gone(agent, error) if agent.has_begun else _not_met(settings, meeting, error)) from None
    if StoppedError.exit_status in _lost(result).values():
        raise StoppedError(STOPPED)
    if result.is_failed():
        raise PosefoundryError(_explain(agent, result, settings))


def threads_a_process(n_processes: int) -> int:
    """Returns the share of this host's cores that each of its processes computes on."""
    return max(1, usable_cores() // n_processes)


class _Agent(LocalElasticAgent):
    """Starts the workers of this host, watches them, and starts the whole group anew when one is lost."""

    def __init__(self, spec: WorkerSpec, meeting: Meeting, agreement: str) -> None:
        # Workers get 30 s to save and end after SIGTERM: PyTorch's default, and in 2.11 nothing else.
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull))
        self.meeting, self.agreement = meeting, agreement
        self.name = f"{socket.gethostname()} ({meeting.own_address})"
        self.hosts: list[str] = []  # of the last attempt, in order of their ranks

    @property
    def has_begun(self) -> bool:
        """True once all hosts have met."""
        return bool(self.hosts)

    def rank(self, torchrun_rank: int) -> str:
        """Names a process as the training does, whose rank 0 is on the host that the rendezvous names."""
        n_processes = len(self.hosts) * self.get_worker_group().spec.local_world_size
        return f"rank {(torchrun_rank - int(os.environ[FIRST_RANK])) % n_processes}"

    def ended_by(self) -> str:
        """Names the host that has ended the training for all, if it has left its name."""
        with suppress(RendezvousConnectionError):
            if self._asks(lambda store: store.check([ENDED_BY])):
                return self._asks(lambda store: store.get(ENDED_BY)).decode()
        return "another host"

    def has_finished(self) -> bool:
        """True once rank 0 was here and has ended well: it does so last, when all is written."""
        endings = [handler.proc.poll() for handler in self._handlers()]
        return self.meeting.is_here and endings[:1] == [0]

    def missing(self) -> list[str]:
        """Names the hosts of the last attempt that have not come to begin again; none where their store is gone too."""
        with suppress(RendezvousConnectionError):
            numbered = list(enumerate(self.hosts))
            return self._asks(lambda store: [host for rank, host in numbered if not store.check([f"back/{rank}"])])
        return []

    def others(self) -> str:
        """Names the hosts of the last attempt without this one."""
        return " or ".join(host for host in self.hosts if host != self.name) or "another host"

    def _asks(self, question: Callable[[Store], T]) -> T:
        """Returns what the store of the processes answers.

        Raises:
            RendezvousConnectionError: It is gone, or does not answer.
        """
        store = self.get_worker_group().store
        if store is None:
            raise RendezvousConnectionError("the processes have no common store yet")
        try:
            return _answer(lambda: question(store), ANSWER_TIMEOUT_S)
        except DistError as error:
            raise RendezvousConnectionError(str(error)) from error

    def _assign_worker_ranks(self, *group: Any) -> list[Worker]:
        return _answer(partial(super()._assign_worker_ranks, *group), ANSWER_TIMEOUT_S)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        _answer(partial(self._agree, worker_group), ANSWER_TIMEOUT_S)
        return super()._start_workers(worker_group)

    def _agree(self, worker_group: WorkerGroup) -> None:
        """Exchanges with the other hosts what their processes have to know.

        Raises:
            PosefoundryError: They are to train differently.
        """
        store, own_rank = worker_group.store, worker_group.group_rank
        assert store is not None and own_rank is not None
        store.set(f"host/{own_rank}", self.name)
        store.set(f"agreement/{own_rank}", self.agreement)
        if self.meeting.is_here:
            store.set("attempt", uuid.uuid4().hex)
            store.set("first_rank", str(worker_group.workers[0].global_rank))
        ranks = range(worker_group.group_world_size or 1)
        for rank in ranks:
            if store.get(f"agreement/{rank}").decode() != self.agreement:
                raise PosefoundryError(
                    "the hosts of this training have different parameters or commands. Give all the same "
                    "params.yaml and start them again."
                )
        os.environ[ATTEMPT] = store.get("attempt").decode()
        os.environ[FIRST_RANK] = store.get("first_rank").decode()
        self.hosts = [store.get(f"host/{rank}").decode() for rank in ranks]

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        with suppress(RendezvousConnectionError):  # where the store is gone, the rendezvous says so
            self._asks(lambda store: store.set(f"back/{worker_group.group_rank}", ""))
        super()._restart_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._has_told_of_a_fault():
            # There is nothing to save, and one that stands still would be waited for.
            self._remaining_restarts = 0
            self._signal_all(signal.SIGKILL)
        result = super()._monitor_workers(worker_group)
        if result.state is WorkerState.HEALTHY:
            self._heed_end_elsewhere()
        lost = _lost(result)
        if PosefoundryError.exit_status in lost.values() or StoppedError.exit_status in lost.values():
            self._remaining_restarts = 0
        elif result.state is WorkerState.FAILED and self._remaining_restarts:
            who = ", ".join(f"{self.rank(number)} ({_ending(code)})" for number, code in lost.items())
            again = f", once each host is back, within {JOIN_TIMEOUT_S} s" if len(self.hosts) > 1 else ""
            left = self._remaining_restarts - 1
            print(
                f"train: lost {who}; all go on from the last checkpoint{again}; restarts left: {left}.", file=sys.stderr
            )
        if result.state is WorkerState.FAILED and not self._remaining_restarts:
            self._tell_end(lost)
        return result

    def _tell_end(self, lost: Mapping[int, int]) -> None:
        """Leaves this host's name for the others, but not after a signal: they may still be saving."""
        if StoppedError.exit_status not in lost.values():
            with suppress(RendezvousConnectionError):
                self._asks(lambda store: store.set(ENDED_BY, self.name))

    def _heed_end_elsewhere(self) -> None:
        """Ends workers that still run when another host has given up: one of them may stand still for ever.

        Raises:
            RendezvousClosedError: It has.
            RendezvousConnectionError: The host that the rendezvous names does not answer.
        """
        is_closed = self.get_worker_group().spec.rdzv_handler.is_closed
        try:
            has_ended = is_closed() and self._asks(lambda store: store.check([ENDED_BY]))
        except RendezvousConnectionError:
            self._hear_and_kill_workers()
            raise
        if has_ended:
            self._hear_and_kill_workers()
            raise RendezvousClosedError

    def _hear_and_kill_workers(self) -> None:
        last = time.monotonic() + LAST_WORDS_S
        while time.monotonic() < last and any(_ended(pid) is None for pid in self._pids()):
            time.sleep(MONITOR_INTERVAL_S)
        self._signal_all(signal.SIGKILL)

    def _has_told_of_a_fault(self) -> bool:
        return any(_ended(pid) == (os.CLD_EXITED, PosefoundryError.exit_status) for pid in self._pids())

    def _signal_all(self, signal_number: signal.Signals) -> None:
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal_number)

    def _handlers(self) -> list[SubprocessHandler]:
        """Returns this host's processes in order of their ranks."""
        context = self._pcontext
        return list(context.subprocess_handlers.values()) if isinstance(context, SubprocessContext) else []

    def _pids(self) -> Iterable[int]:
        return self._pcontext.pids().values() if self._pcontext else ()


def _ended(pid: int) -> tuple[int, int | None] | None:
    """Returns how a child has ended, and leaves it to be looked at again; None while it runs."""
    try:
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # it was looked after already
        return os.CLD_EXITED, None
    return (end.si_code, end.si_status) if end else None


def _answer(question: Callable[[], T], seconds: float) -> T:
    """Returns the answer; over a link that is down, torch waits for one for as long as TCP tries to get through.

    Raises:
        RendezvousConnectionError: None has come within so many seconds.
    """
    try:
        return answer_within(seconds, question)
    except TimeoutError:
        raise RendezvousConnectionError(f"it has not answered for {seconds:g} s") from None


def _agent(command: Sequence[str], settings: Train, meeting: Meeting) -> _Agent:
    handler = get_rendezvous_handler(
        RendezvousParameters(
            backend="c10d",
            endpoint=meeting.endpoint,
            run_id="posefoundry-train",
            min_nodes=settings.nodes,
            max_nodes=settings.nodes,
            local_addr=meeting.own_address,
            is_host=meeting.is_here,
            join_timeout=JOIN_TIMEOUT_S,
        )
    )
    for name in ("is_closed", "num_nodes_waiting", "shutdown"):
        setattr(handler, name, partial(_answer, getattr(handler, name), ANSWER_TIMEOUT_S))
    next_rendezvous = handler.next_rendezvous
    # Hosts may wait long for each other, but not for an answer of the one where they meet.
    holder = handler._state_holder  # type: ignore[attr-defined]
    holder.sync = partial(_answer, holder.sync, ANSWER_TIMEOUT_S)

    def meet() -> RendezvousInfo:
        # Torch keeps from the first meeting where the processes' store is. It may have gone with its host.
        handler._bootstrap_store_info = None  # type: ignore[attr-defined]
        return _answer(next_rendezvous, JOIN_TIMEOUT_S + ANSWER_TIMEOUT_S)

    handler.next_rendezvous = meet  # type: ignore[method-assign]
    spec = WorkerSpec(
        role="train",
        local_world_size=settings.processes,
        entrypoint=command[0],
        args=tuple(command[1:]),
        rdzv_handler=handler,
        max_restarts=settings.max_restarts,
        monitor_interval=MONITOR_INTERVAL_S,
        local_addr=meeting.own_address,
    )
    agreed = settings.model_dump_json()
    return _Agent(spec, meeting, hashlib.sha256(agreed.encode()).hexdigest())


def _run(agent: _Agent) -> RunResult:
    leave_open = False
    try:
        return agent.run()
    except SignalException:
        # Other hosts may wait for a replacement of this one.
        leave_open = True
        if agent.has_finished():
            return RunResult(state=WorkerState.SUCCEEDED)
        raise StoppedError(STOPPED) from None
    except (ConnectionError, DistError, RendezvousConnectionError) as error:  # the store went with its host
        leave_open = True  # there is nothing left to close
        raise RendezvousConnectionError(str(error.__cause__ or error)) from None
    finally:
        handler = agent.get_worker_group().spec.rdzv_handler
        with suppress(RendezvousError, SignalException):
            if leave_open:
                # Torch's thread that tells the others of this host would come back while Python ends, and abort it.
                _answer(handler._stop_heartbeats, LAST_HEARTBEAT_S)  # type: ignore[attr-defined]
            else:
                handler.shutdown()


def _not_met(settings: Train, meeting: Meeting, error: RendezvousError) -> str:
    return (
        f"the {settings.nodes} hosts of this training did not meet at {meeting.endpoint}: {_reason(error)}. Check "
        f"that each has {RENDEZVOUS} set to the same reachable host:port, and that all were started."
    )


def _gone(agent: _Agent, error: RendezvousError) -> str:
    """Says which host was lost: the one of the rendezvous, or those that do not come back or do not speak there."""
    if not isinstance(error, RendezvousConnectionError):
        who, how = ", ".join(agent.missing()) or agent.others(), f"it did not come back within {JOIN_TIMEOUT_S} s"
    elif agent.meeting.is_here:
        who, how = agent.others(), _reason(error)
    else:
        who, how = f"the host of the rendezvous, {agent.meeting.endpoint},", _reason(error)
    return (
        f"the connection to {who} was lost after the training began: {how}. See what became of that host, and start "
        "all hosts again: the training goes on from the last checkpoint."
    )


def _reason(error: RendezvousError) -> str:
    """Returns the first sentence of the cause, to which torch's own only refers."""
    text = str(error.__cause__ or error).strip() or type(error).__name__
    return text.splitlines()[0].partition(". ")[0].rstrip(".")


def _lost(result: RunResult) -> dict[int, int]:
    """Returns exit codes by torchrun's rank of those that failed, without those that ended because of them."""
    codes = {rank: failure.exitcode for rank, failure in sorted(result.failures.items())}
    if PosefoundryError.exit_status in codes.values():
        return {rank: code for rank, code in codes.items() if code == PosefoundryError.exit_status}
    # By SIGABRT NCCL's watchdog ends a process whose peer is lost; others may do so of their own.
    for consequences in ((-signal.SIGTERM, LOST_PEER_STATUS), (-signal.SIGABRT,)):
        codes = {rank: code for rank, code in codes.items() if code not in consequences} or codes
    return codes


def _ending(exit_code: int) -> str:
    return f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit status {exit_code}"


def _explain(agent: _Agent, result: RunResult, settings: Train) -> str:
    endings = _lost(result)
    who = ", ".join(
        f"{agent.rank(number)} {'was' if code < 0 else 'ended with'} {_ending(code)}"
        for number, code in endings.items()
    )
    if PosefoundryError.exit_status in endings.values():
        return f"{who}; the output above tells the cause."
    n = settings.max_restarts
    return f"{who}; gave up after {n} restart{'s' * (n != 1)}. The output above tells the cause."
