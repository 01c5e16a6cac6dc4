"""Faults of PyTorch that a user can mend, told with what to do: too little memory, no compiler."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from posefoundry.errors import PosefoundryError

# Of what CUDA's libraries could not allocate by themselves.
SIGNS_OF_TOO_LITTLE_MEMORY = ("CUDA error: out of memory", "_STATUS_ALLOC_FAILED", "Cuda failure 2 'out of memory'")


@contextmanager
def told_plainly(device: torch.device, n_images: int) -> Iterator[None]:
    """Turns PyTorch's faults of a block into such that name the remedies.

    Args:
        device: What the block computes on.
        n_images: That it learns from at a time.

    Raises:
        PosefoundryError: The device has too little memory, or the model cannot be compiled.
    """
    try:
        yield
    except RuntimeError as error:
        if is_of_memory(error):
            raise PosefoundryError(_of_memory(error, device, n_images)) from None
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise PosefoundryError(
                "train.compile: PyTorch could not compile the model. It needs a C++ compiler (g++, or what CXX names), "
                f"and on a GPU triton too. Install it, or set train.compile: false. PyTorch says: {_begin_of(error)}"
            ) from None
        raise


def is_of_memory(error: RuntimeError) -> bool:
    """Returns whether a device has too little memory, also where one of CUDA's libraries found that out."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS_OF_TOO_LITTLE_MEMORY)


def _of_memory(error: RuntimeError, device: torch.device, n_images: int) -> str:
    return (
        f"{device} has too little memory for batches of {n_images} images a process. Lower train.batch_size, or "
        "set it to auto; a smaller train.image_size_px or train.model needs less too. Where only little is "
        "missing, PYTORCH_ALLOC_CONF=expandable_segments:True in the environment may do, and the training goes on "
        f"from its last checkpoint. PyTorch says: {_begin_of(error)}"
    )


def _begin_of(error: RuntimeError) -> str:
    return str(error).strip().partition(". See documentation")[0].partition("\n\n")[0]
