"""Steps that must not count: judged and left out on the device, without waiting for it."""

from typing import Any

import torch
from torch import Tensor, nn

# A gradient is said to explode when its norm is this many times the usual one and this many times the clipping norm.
# Batches that differ as much as batches do stay far below it.
EXPLOSION_FACTOR = 100.0
USUAL_NORM_WEIGHT = 0.05  # of the latest step in the running mean


class StepGuard:
    """Judges each step's numbers, and takes none from a step whose loss or gradient is broken.

    Args:
        model: Its BatchNorm statistics are put back after such a step.
        gradient_clip_norm: What gradients are clipped to.
    """

    def __init__(self, model: nn.Module, gradient_clip_norm: float) -> None:
        self.gradient_clip_norm = gradient_clip_norm
        self.statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.kept = [torch.empty_like(buffer) for buffer in self.statistics]
        # Looked at as integers: see `_keep_statistics_if`.
        self._new_bits, self._old_bits = ([b.view(torch.int32) for b in each] for each in (self.statistics, self.kept))
        device = next(model.parameters()).device
        self.usual_norm = torch.full((), torch.inf, device=device)  # until the first good step

    @torch.no_grad()
    def remember(self) -> None:
        """Called before the forward pass, which moves BatchNorm's statistics."""
        if self.statistics:
            torch._foreach_copy_(self.kept, self.statistics)

    @torch.no_grad()
    def judge(self, numbers: Tensor, norm: Tensor) -> Tensor:
        """Returns whether a step is good, a bool tensor ().

        Args:
            numbers: The step's loss terms, summed over all processes, so that all judge alike.
            norm: The gradient's norm before clipping.
        """
        explodes = (norm > EXPLOSION_FACTOR * self.usual_norm) & (norm > EXPLOSION_FACTOR * self.gradient_clip_norm)
        good = numbers.isfinite().all() & norm.isfinite() & ~explodes
        first = self.usual_norm.isinf()
        moved = torch.where(first, norm, torch.lerp(self.usual_norm, norm, USUAL_NORM_WEIGHT))
        self.usual_norm = torch.where(good, moved, self.usual_norm)
        return good

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, good: Tensor) -> None:
        """Lets the optimiser step if the step is good; otherwise leaves weights, state and statistics as they were."""
        if good.device.type != "cpu":
            self._step_unasked(optimizer, good)
        elif good:
            optimizer.step()
        elif self.statistics:
            torch._foreach_copy_(self.statistics, self.kept)

    def _step_unasked(self, optimizer: torch.optim.Optimizer, good: Tensor) -> None:
        """Does so without the host knowing which it is: to ask a GPU is to wait for it."""
        optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]  # fused optimisers and MuSGD heed it
        optimizer.step()
        self._keep_statistics_if(good)

    def _keep_statistics_if(self, good: Tensor) -> None:
        # As integers, because NaN times zero is NaN: new * good + old * bad.
        if self.statistics:
            torch._foreach_mul_(self._new_bits, good.int())
            torch._foreach_mul_(self._old_bits, (~good).int())
            torch._foreach_add_(self._new_bits, self._old_bits)

    def state_dict(self) -> dict[str, Any]:
        """Returns what the next judgement depends on."""
        return {"usual_norm": self.usual_norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it up again."""
        self.usual_norm = state["usual_norm"].to(self.usual_norm.device)
