"""Starting a training's processes, on one host or several, and starting them again when one is lost.

This is what torchrun is made of (an elastic agent on each host, met by c10d rendezvous), with what torchrun lacks: the
host that the rendezvous names is the one of rank 0, which writes; hosts with different parameters refuse to train
together; and a fault that would happen again (exit status 2: its message explains it) ends the job at once on all
hosts, while a lost process costs one of `train.max_restarts`.
"""

import hashlib
import os
import signal
import socket
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError, StoppedError
from posefoundry.training.distributed import ATTEMPT, FIRST_RANK

# Where the hosts of one training meet, `host:port`; an address is no property of a training, so params.yaml has none.
RENDEZVOUS = "POSEFOUNDRY_RDZV"
DEFAULT_PORT = 29500
# Seconds that workers get to save and end after SIGTERM.
GRACE_S = 30
JOIN_TIMEOUT_S = 600
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
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    try:
        agent = _agent(command, settings, meeting)
        result = _run(agent, settings.nodes)
    except RendezvousClosedError:
        raise PosefoundryError(
            "another host has ended this training; its output tells why. Start all hosts again."
        ) from None
    except RendezvousError as error:
        raise PosefoundryError(
            f"the {settings.nodes} hosts of this training did not meet at {meeting.endpoint}: {error}. Check "
            f"that each has {RENDEZVOUS} set to the same reachable host:port, and that all were started."
        ) from None
    if StoppedError.exit_status in _lost(result).values():
        raise StoppedError(STOPPED)
    if result.is_failed():
        raise PosefoundryError(_explain(result, settings))


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
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull), shutdown_timeout=GRACE_S)
        self.meeting, self.agreement = meeting, agreement

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        store, own_rank = worker_group.store, worker_group.group_rank
        assert store is not None and own_rank is not None
        store.set(f"agreement/{own_rank}", self.agreement)
        if self.meeting.is_here:
            store.set("attempt", uuid.uuid4().hex)
            store.set("first_rank", str(worker_group.workers[0].global_rank))
        for rank in range(worker_group.group_world_size or 1):
            if store.get(f"agreement/{rank}").decode() != self.agreement:
                raise PosefoundryError(
                    "the hosts of this training have different parameters or commands. Give all the same "
                    "params.yaml and start them again."
                )
        os.environ[ATTEMPT] = store.get("attempt").decode()
        os.environ[FIRST_RANK] = store.get("first_rank").decode()
        return super()._start_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._has_told_of_a_fault():
            # There is nothing to save, and one that stands still would be waited for.
            self._remaining_restarts = 0
            self._signal_all(signal.SIGKILL)
        result = super()._monitor_workers(worker_group)
        lost = _lost(result)
        if PosefoundryError.exit_status in lost.values() or StoppedError.exit_status in lost.values():
            self._remaining_restarts = 0
        elif result.state is WorkerState.FAILED and self._remaining_restarts:
            who = ", ".join(f"rank {rank} ({_ending(code)})" for rank, code in lost.items())
            left = self._remaining_restarts - 1
            print(f"train: lost {who}; all go on from the last checkpoint, {left} restarts left.", file=sys.stderr)
        return result

    def _has_told_of_a_fault(self) -> bool:
        """Looks at how the workers have ended, and leaves it to be looked at again."""
        for pid in self._pids():
            with suppress(ChildProcessError):
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended and (ended.si_code, ended.si_status) == (os.CLD_EXITED, PosefoundryError.exit_status):
                    return True
        return False

    def _signal_all(self, signal_number: signal.Signals) -> None:
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal_number)

    def _pids(self) -> Iterable[int]:
        return self._pcontext.pids().values() if self._pcontext else ()


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


def _run(agent: _Agent, n_nodes: int) -> RunResult:
    leave_open = False
    try:
        return agent.run()
    except SignalException:
        # Other hosts may wait for a replacement of this one.
        leave_open = True
        raise StoppedError(STOPPED) from None
    except ConnectionError as error:  # the store went with its host
        raise RendezvousError(str(error)) from None
    finally:
        if not leave_open:
            with suppress(RendezvousError):
                agent.get_worker_group().spec.rdzv_handler.shutdown()


def _lost(result: RunResult) -> dict[int, int]:
    """Returns exit codes by rank of those that failed, without those that the agent then asked to end."""
    codes = {rank: failure.exitcode for rank, failure in sorted(result.failures.items())}
    if PosefoundryError.exit_status in codes.values():
        return {rank: code for rank, code in codes.items() if code == PosefoundryError.exit_status}
    return {rank: code for rank, code in codes.items() if code != -signal.SIGTERM} or codes


def _ending(exit_code: int) -> str:
    return f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit status {exit_code}"


def _explain(result: RunResult, settings: Train) -> str:
    endings = _lost(result)
    who = ", ".join(f"rank {rank}: {_ending(code)}" for rank, code in endings.items())
    again = "" if PosefoundryError.exit_status in endings.values() else f" after {settings.max_restarts} restarts"
    return (
        f"expected {settings.nodes * settings.processes} processes to end well, got {who}{again}; the cause "
        "stands above."
    )
