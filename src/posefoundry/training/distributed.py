"""One process or several: the same calls, the same mathematics."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

# A validation on rank 0 or a slow disk may keep the others waiting; a rank that is gone must not hang the job for ever.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """This process among its peers, as torchrun started them."""

    rank: int
    n_processes: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files, logs and judges."""
        return self.rank == 0

    def sum(self, local: Tensor) -> Tensor:
        """Returns the sum of a tensor over all processes."""
        if self.n_processes > 1:
            dist.all_reduce(local)
        return local

    def take_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors with those of the main process."""
        if self.n_processes > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def from_main(self, value: T) -> T:
        """Returns the main process's value, whatever the others give."""
        if self.n_processes == 1:
            return value
        values = [value if self.is_main else None]
        dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]

    def gather(self, local: list[Any]) -> list[Any]:
        """Returns the lists of all processes joined, the same in each process, in order of rank."""
        if self.n_processes == 1:
            return local
        parts: list[list[Any]] = [[] for _ in range(self.n_processes)]
        dist.all_gather_object(parts, local)
        return [item for part in parts for item in part]

    def close(self) -> None:
        """Leaves the group."""
        if self.n_processes > 1:
            dist.destroy_process_group()


def join_process_group(device: str) -> ProcessGroup:
    """Joins the peers that torchrun's environment variables name, by NCCL on GPUs and gloo on CPUs.

    Args:
        device: auto, cpu or cuda; auto takes a GPU when there is one.
    """
    n_processes = int(os.environ.get("WORLD_SIZE", "1"))
    use_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    own_device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(own_device)
    if n_processes > 1:
        dist.init_process_group("nccl" if use_gpu else "gloo", timeout=COLLECTIVE_TIMEOUT)
    return ProcessGroup(rank=int(os.environ.get("RANK", "0")), n_processes=n_processes, device=own_device)
