"""One process or several: the same calls, the same mathematics."""

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from posefoundry.errors import PosefoundryError, StoppedError
from posefoundry.training.stall import Progress, watch_for_stalls

# What `training.launch` tells its workers: a name of the attempt, and whose torchrun rank becomes 0.
ATTEMPT = "POSEFOUNDRY_ATTEMPT"
FIRST_RANK = "POSEFOUNDRY_FIRST_RANK"
# The stall watch ends a job sooner, and says whose fault it is; these are the net below it.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
STORE_TIMEOUT = timedelta(minutes=5)
STALL_STORE_TIMEOUT = timedelta(seconds=10)
# A fault of one process breaks the connections of all. The one that knows the cause is to end first, and be heard.
HEAR_PEERS_S = 2.0
LOST_PEER_STATUS = 4  # of a process that ends since another has ended

ModuleT = TypeVar("ModuleT", bound=nn.Module)

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """This process among its peers, as torchrun or `training.launch` started them; a context that ends with the group.

    Attributes:
        rank: 0 for the main process.
        n_processes: Of all hosts.
        device: What this process computes on.
        local_rank: This process among those of this host.
        progress: What this process does, for the stall watch; the group's calls keep it.
    """

    rank: int
    n_processes: int
    device: torch.device
    local_rank: int = 0
    progress: Progress = field(default_factory=Progress)

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files, logs and judges."""
        return self.rank == 0

    def sum(self, local: Tensor) -> Tensor:
        """Returns the tensor itself, overwritten with its sum over all processes."""
        if self.n_processes > 1:
            with self.progress.waiting_for_peers("adding up over all processes"):
                dist.all_reduce(local)
        return local

    def take_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors with those of the main process."""
        if self.n_processes > 1:
            with self.progress.waiting_for_peers("taking values from rank 0"):
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def from_main(self, value: T) -> T:
        """Returns the main process's value, whatever the others give."""
        if self.n_processes == 1:
            return value
        values = [value if self.is_main else None]
        with self.progress.waiting_for_peers("taking values from rank 0"):
            dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]

    def gather(self, local: list[Any]) -> list[Any]:
        """Returns the lists of all processes joined, the same in each process, in order of rank."""
        if self.n_processes == 1:
            return local
        parts: list[list[Any]] = [[] for _ in range(self.n_processes)]
        with self.progress.waiting_for_peers("gathering lists"):
            dist.all_gather_object(parts, local)
        return [item for part in parts for item in part]

    def gather_in_main(self, local: list[Any]) -> list[Any]:
        """Returns the lists of all processes joined, in order of rank; an empty list in others than the main process.

        For what is large: NCCL would have `gather` put it on every GPU.
        """
        if self.n_processes == 1:
            return local
        parts: list[list[Any]] | None = [[] for _ in range(self.n_processes)] if self.is_main else None
        with self.progress.waiting_for_peers("gathering lists"):
            dist.gather_object(local, parts, dst=0)
        return [item for part in parts or [] for item in part]

    def close(self) -> None:
        """Leaves the group."""
        if self.n_processes > 1:
            dist.destroy_process_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, (StoppedError, SystemExit)):  # which all come to at the same step
            self.close()
            if isinstance(error, StoppedError) and not self.is_main:
                sys.exit(error.exit_status)  # the main process tells it
        elif self.n_processes > 1 and isinstance(error, RuntimeError):
            _end_where_a_peer_is_lost(self.rank, error)


def require_gpu() -> None:
    """Makes sure that there is one.

    Raises:
        PosefoundryError: There is none.
    """
    if not torch.cuda.is_available():
        raise PosefoundryError(
            "device: expected a GPU, and PyTorch sees none. See `nvidia-smi`, CUDA_VISIBLE_DEVICES and whether "
            f"PyTorch {torch.__version__} is a CUDA build, or train with device: cpu."
        )


def _end_where_a_peer_is_lost(rank: int, error: RuntimeError) -> None:
    """Ends this process in a line if the fault is another process's."""
    time.sleep(HEAR_PEERS_S)
    if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
        # Gloo begins with a place in its code and ends with advice.
        reason = re.sub(r"^\[\S+\] ", "", str(error).strip()).splitlines()[0].partition(". ")[0].rstrip(".")
        print(f"train: rank {rank} has lost the connection to another process: {reason}.", file=sys.stderr)
        sys.exit(LOST_PEER_STATUS)


def join_process_group(device: str, stall_timeout_s: float) -> ProcessGroup:
    """Joins the peers that the environment variables of torchrun name, by NCCL on GPUs and gloo on CPUs.

    Started by `training.launch`, the ranks are turned so that 0 is on the host that the rendezvous names, and the job
    ends with a fault where they do not all come.

    Args:
        device: auto, cpu or cuda; auto takes a GPU when there is one.
        stall_timeout_s: The others are waited for so long.
    """
    n_processes, local_rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    use_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    own_device = torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")
    if use_gpu:
        require_gpu()
        if local_rank >= torch.cuda.device_count():
            raise PosefoundryError(
                f"train.processes: expected at most one process a GPU, got {torch.cuda.device_count()} GPUs here and "
                f"process {local_rank + 1}. Lower train.processes, or set train.device: cpu."
            )
        torch.cuda.set_device(own_device)
    if n_processes == 1:
        return ProcessGroup(rank=0, n_processes=1, device=own_device)
    # NCCL connects at the first call, which the stall watch sees; a `device_id` here would let it wait unseen.
    backend = "nccl" if use_gpu else "gloo"
    rank = (int(os.environ["RANK"]) - int(os.environ.get(FIRST_RANK, "0"))) % n_processes
    group = ProcessGroup(rank, n_processes, own_device, local_rank)
    if ATTEMPT not in os.environ:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
        return group
    try:
        with watched(group, stall_timeout_s, part="joining"):
            # The agent's store outlives an attempt: what the one before has written there must not be read again.
            base = open_store(STORE_TIMEOUT)
            base.set_timeout(COLLECTIVE_TIMEOUT)  # NCCL waits in it at the first call, however long the others prepare
            store = PrefixStore(os.environ[ATTEMPT], base)
            dist.init_process_group(backend, store=store, rank=rank, world_size=n_processes, timeout=COLLECTIVE_TIMEOUT)
    except RuntimeError as error:
        _end_where_a_peer_is_lost(rank, error)
        raise
    return group


def open_store(timeout: timedelta) -> Store:
    """Opens a connection of its own to the store that all processes of this training share.

    Raises:
        torch.distributed.DistNetworkError: Its host does not answer.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:  # where torch itself gets no answer, it writes pages of its own stack
        socket.create_connection((host, port), timeout.total_seconds()).close()
    except OSError as error:
        raise dist.DistNetworkError(f"their common store at {host}:{port} does not answer: {error}") from None
    return TCPStore(host, port, is_master=False, timeout=timeout)


def synchronise_batchnorm(model: ModuleT, group: ProcessGroup) -> ModuleT:
    """Lets BatchNorm normalise by the statistics of the whole batch, not of this process's share of it.

    Raises:
        PosefoundryError: On a CPU, where PyTorch has no synchronised BatchNorm.
    """
    if group.device.type != "cuda":
        raise PosefoundryError(
            f"train.sync_batchnorm: expected GPUs, got device {group.device.type}: PyTorch synchronises BatchNorm on "
            "GPUs alone. Set train.sync_batchnorm: false, and a larger batch or train.freeze_batchnorm: true."
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if group.n_processes > 1 else model


@contextmanager
def watched(
    group: ProcessGroup,
    stall_timeout_s: float,
    last_words: Callable[[str], None] | None = None,
    part: str = "training",
) -> Iterator[None]:
    """Ends the job with a fault that names the process at fault where one of several stalls; see `training.stall`.

    Args:
        group: This process among its peers.
        stall_timeout_s: A process that does not move for so long has stalled.
        last_words: Called with the verdict before the end.
        part: Of the job; who has ended one part well is not yet in the next.
    """
    if group.n_processes == 1:
        yield
        return
    store = PrefixStore(f"stall/{part}/{os.environ.get(ATTEMPT, '')}", open_store(STALL_STORE_TIMEOUT))
    with watch_for_stalls(store, group.progress, group.rank, group.n_processes, stall_timeout_s, last_words):
        yield
