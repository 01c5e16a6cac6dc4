"""Starting a training's processes, on one host or several, and starting them again when one is lost.

This is what torchrun is made of (an elastic agent on each host, met by c10d rendezvous), with what torchrun lacks: the
host that the rendezvous names is the one of rank 0, which writes; hosts with different parameters refuse to train
together; a fault that would happen again (exit status 2: its message explains it) ends the job on all hosts, also
where a process stands still, while a lost process costs one of `train.max_restarts`; and a host that is gone is named.
"""

import hashlib
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousParameters,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError, StoppedError
from posefoundry.training.distributed import ATTEMPT, FIRST_RANK

# Where the hosts of one training meet, `host:port`; an address is no property of a training, so params.yaml has none.
RENDEZVOUS = "POSEFOUNDRY_RDZV"
DEFAULT_PORT = 29500
JOIN_TIMEOUT_S = 600
# Seconds that workers get to say what they know when another host has ended the training; the stall watch's last words
# take ten at most.
LAST_WORDS_S = 15.0
# In the store of an attempt: the host that has ended the training for good.
ENDED_BY = "ended by"
MONITOR_INTERVAL_S = 0.1
STOPPED = "stopped by a signal; the next run goes on from the last checkpoint."


@dataclass(frozen=True)
class Meeting:
    """Where the hosts meet, as seen from this one."""

    endpoint: str  # host:port; port 0 is any free one
    is_here: bool  # the meeting point, and with it rank 0, is on this host
    own_address: str  # by which the other hosts reach this one


def started_by_launcher() -> bool:
    """Tells whether this process is a worker already, of this launcher or of torchrun."""
    return "WORLD_SIZE" in os.environ


def run_processes(command: Sequence[str], settings: Train) -> None:
    """Runs a command once a process of this host, together with the other hosts', until all have ended well.

    Args:
        command: Program and arguments.
        settings: Section `train`: nodes, processes of each, how often a lost process may be replaced.

    Raises:
        StoppedError: A signal asked for the end.
        PosefoundryError: A process failed for good, another host gave up, or the hosts did not find each other.
    """
    meeting = find_meeting(settings.nodes, os.environ)
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
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, n_cores // n_processes)


def find_meeting(n_nodes: int, environment: Mapping[str, str]) -> Meeting:
    """Finds where the hosts meet: POSEFOUNDRY_RDZV, else MASTER_ADDR and MASTER_PORT; a single host meets itself.

    Raises:
        PosefoundryError: Several hosts, and no address is given or it cannot be resolved.
    """
    if n_nodes == 1:
        return Meeting("localhost:0", is_here=True, own_address="127.0.0.1")
    given = environment.get(RENDEZVOUS) or ":".join(
        environment[name] for name in ("MASTER_ADDR", "MASTER_PORT") if environment.get(name)
    )
    host, _, port_text = given.rpartition(":") if ":" in given else (given, "", str(DEFAULT_PORT))
    if not host or not port_text.isdigit():
        raise PosefoundryError(
            f"train.nodes is {n_nodes}: expected {RENDEZVOUS}=host:port (or MASTER_ADDR and MASTER_PORT) in the "
            f"environment, got {given or 'nothing'!r}. Name the host that is to write the weights, alike on all hosts."
        )
    try:
        address = socket.getaddrinfo(host, int(port_text), socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise PosefoundryError(f"{RENDEZVOUS}: the host {host!r} is unknown here: {error}.") from None
    is_here = _is_own(str(address))
    return Meeting(f"{host}:{port_text}", is_here, str(address) if is_here else _own_address_towards(str(address)))


def _is_own(address: str) -> bool:
    """Only an address of this host can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _own_address_towards(address: str) -> str:
    """Connecting a datagram socket sends nothing, but chooses the way, and with it the address of this end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, DEFAULT_PORT))
        except OSError as error:
            raise PosefoundryError(f"{RENDEZVOUS}: no way from this host to {address}: {error}.") from None
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """Returns the name of the network interface that has an IPv4 address, on Linux."""
    if sys.platform != "linux":
        return None
    import fcntl

    get_interface_address = 0x8915  # SIOCGIFADDR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(asking, get_interface_address, name.encode()[:15].ljust(256, b"\0"))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


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
        store = self.get_worker_group().store
        with suppress(DistError):
            if store is not None and store.check([ENDED_BY]):
                return str(store.get(ENDED_BY).decode())
        return "another host"

    def missing(self) -> list[str]:
        """Names the hosts of the last attempt that have not come to begin again; none where their store is gone too."""
        store = self.get_worker_group().store
        with suppress(DistError):
            if store is not None:
                return [host for rank, host in enumerate(self.hosts) if not store.check([f"back/{rank}"])]
        return []

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
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
        return super()._start_workers(worker_group)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        with suppress(DistError):  # where the store is gone, the rendezvous says so
            if worker_group.store is not None:
                worker_group.store.set(f"back/{worker_group.group_rank}", "")
        super()._restart_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._has_told_of_a_fault():
            # There is nothing to save, and one that stands still would be waited for.
            self._remaining_restarts = 0
            self._signal_all(signal.SIGKILL)
        result = super()._monitor_workers(worker_group)
        if result.state is WorkerState.HEALTHY:
            self._heed_end_elsewhere(worker_group)
        lost = _lost(result)
        if PosefoundryError.exit_status in lost.values() or StoppedError.exit_status in lost.values():
            self._remaining_restarts = 0
        elif result.state is WorkerState.FAILED and self._remaining_restarts:
            who = ", ".join(f"{self.rank(number)} ({_ending(code)})" for number, code in lost.items())
            again = f", once each host is back, within {JOIN_TIMEOUT_S} s" if len(self.hosts) > 1 else ""
            left = self._remaining_restarts - 1
            print(
                f"train: lost {who}; all go on from the last checkpoint{again}; {left} restarts left.", file=sys.stderr
            )
        if result.state is WorkerState.FAILED and not self._remaining_restarts:
            self._tell_end(worker_group, lost)
        return result

    def _tell_end(self, worker_group: WorkerGroup, lost: Mapping[int, int]) -> None:
        """Leaves this host's name for the others, but not after a signal: they may still be saving."""
        if worker_group.store is not None and StoppedError.exit_status not in lost.values():
            with suppress(DistError):
                worker_group.store.set(ENDED_BY, self.name)

    def _heed_end_elsewhere(self, worker_group: WorkerGroup) -> None:
        """Ends workers that still run when another host has given up: one of them may stand still for ever.

        Raises:
            RendezvousClosedError: It has.
            RendezvousConnectionError: The host that the rendezvous names does not answer.
        """
        store = worker_group.store
        try:
            has_ended = worker_group.spec.rdzv_handler.is_closed() and store is not None and store.check([ENDED_BY])
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

    def _pids(self) -> Iterable[int]:
        return self._pcontext.pids().values() if self._pcontext else ()


def _ended(pid: int) -> tuple[int, int | None] | None:
    """Returns how a child has ended, and leaves it to be looked at again; None while it runs."""
    try:
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # it was looked after already
        return os.CLD_EXITED, None
    return (end.si_code, end.si_status) if end else None


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
        raise StoppedError(STOPPED) from None
    except (ConnectionError, DistError, RendezvousConnectionError) as error:  # the store went with its host
        leave_open = True  # there is nothing left to close
        raise RendezvousConnectionError(str(error.__cause__ or error)) from None
    finally:
        if not leave_open:
            with suppress(RendezvousError):
                agent.get_worker_group().spec.rdzv_handler.shutdown()


def _not_met(settings: Train, meeting: Meeting, error: RendezvousError) -> str:
    return (
        f"the {settings.nodes} hosts of this training did not meet at {meeting.endpoint}: {_reason(error)}. Check "
        f"that each has {RENDEZVOUS} set to the same reachable host:port, and that all were started."
    )


def _gone(agent: _Agent, error: RendezvousError) -> str:
    """Says which host was lost: the one of the rendezvous, or those that do not come back to it."""
    if isinstance(error, RendezvousConnectionError):
        who, how = f"the host of the rendezvous, {agent.meeting.endpoint},", _reason(error)
    else:
        who, how = ", ".join(agent.missing()) or "another host", f"it did not come back within {JOIN_TIMEOUT_S} s"
    return (
        f"the connection to {who} was lost after the training began: {how}. See what became of that host, and start "
        "all hosts again: the training goes on from the last checkpoint."
    )


def _reason(error: RendezvousError) -> str:
    """Returns the first sentence of the cause, to which torch's own only refers."""
    text = str(error.__cause__ or error).strip() or type(error).__name__
    return text.splitlines()[0].partition(". ")[0].rstrip(".")


def _lost(result: RunResult) -> dict[int, int]:
    """Returns exit codes by torchrun's rank of those that failed, without those that the agent then asked to end."""
    codes = {rank: failure.exitcode for rank, failure in sorted(result.failures.items())}
    if PosefoundryError.exit_status in codes.values():
        return {rank: code for rank, code in codes.items() if code == PosefoundryError.exit_status}
    return {rank: code for rank, code in codes.items() if code != -signal.SIGTERM} or codes


def _ending(exit_code: int) -> str:
    return f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit status {exit_code}"


def _explain(agent: _Agent, result: RunResult, settings: Train) -> str:
    endings = _lost(result)
    who = ", ".join(f"{agent.rank(number)}: {_ending(code)}" for number, code in endings.items())
    again = "" if PosefoundryError.exit_status in endings.values() else f" after {settings.max_restarts} restarts"
    return (
        f"expected {settings.nodes * settings.processes} processes to end well, got {who}{again}; the cause "
        "stands above."
    )
