"""The numbers of the epoch under way: what they were on the mean, and how long it took."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

from posefoundry.machine import peak_memory_bytes
from posefoundry.training.rescue import DivergedError

T = TypeVar("T")


class EpochLog:
    """Adds up the steps of an epoch; an epoch that was interrupted goes on adding.

    Args:
        terms: Names of the loss terms.
    """

    def __init__(self, terms: tuple[str, ...]) -> None:
        self.terms = terms
        self.sums: dict[str, float] = {}
        self.learning_rate = 0.0
        self.n_good = self.n_skipped = 0
        self.seconds = self.waiting_seconds = 0.0
        self.first_skipped: tuple[int, dict[str, float]] = 0, {}

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """Hands on the items, adding up the time that the loop takes and the part of it that it waits for the next."""
        began = time.perf_counter()
        for item in items:
            ready = time.perf_counter()
            self.waiting_seconds += ready - began
            self.seconds += ready - began
            yield item
            began = time.perf_counter()
            self.seconds += began - ready

    def add(self, step: int, learning_rate: float, row: list[float]) -> tuple[dict[str, float], bool]:
        """Takes the numbers of a step: loss terms, positive anchors, stop requests, gradient norm, good or not.

        Returns:
            The values by name, and whether any process was asked to stop.
        """
        *losses, positive_anchors, stop_requests, norm, good = row
        values = {f"loss_{name}": value for name, value in zip(self.terms, losses, strict=True)}
        values["loss_total"] = sum(losses)
        values |= {"positive_anchors": positive_anchors, "gradient_norm": norm, "lr": learning_rate}
        if good:
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.n_good += 1
        else:
            if not self.n_skipped:
                self.first_skipped = step, values
            self.n_skipped += 1
        self.learning_rate = learning_rate
        return values | {"skipped": 1.0 - good}, stop_requests > 0

    def check_any_good(self) -> None:
        """Asks, at the end of an epoch, whether anything was learnt.

        Raises:
            DivergedError: No step was good.
        """
        if not self.n_good:
            raise DivergedError(*self.first_skipped, n_skipped=self.n_skipped)

    def summary(self, batch_size: int, device: torch.device) -> dict[str, float | None]:
        """Returns means over the epoch's good steps, of which there must be one, speed and memory."""
        return {
            **{name: value / self.n_good for name, value in self.sums.items()},
            "lr": self.learning_rate,
            "skipped_steps": self.n_skipped,
            "images_per_second": (self.n_good + self.n_skipped) * batch_size / self.seconds,
            "seconds": self.seconds,
            "loader_wait_share": self.waiting_seconds / self.seconds,
            "peak_memory_mib": _peak_memory_mib(device),
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums so far."""
        return {name: getattr(self, name) for name in _KEPT}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        for name in _KEPT:
            setattr(self, name, state[name])


_KEPT = ("sums", "learning_rate", "n_good", "n_skipped", "seconds", "waiting_seconds", "first_skipped")


def _peak_memory_mib(device: torch.device) -> float:
    """Returns the most memory used so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory_bytes() / 2**20
