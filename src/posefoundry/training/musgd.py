"""MuSGD: gradient descent with momentum, plus a step that turns a matrix's every direction by the same amount.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces a weight matrix's momentum by the nearest
orthogonal matrix, so that directions with small gradients learn as fast as those with large ones. YOLO26's optimiser
adds a part of that step to an ordinary one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

ORTHOGONAL_SHARE = 0.2
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a quintic that lifts singular values into 0.7..1.2 in 5 steps


class MuSGD(torch.optim.Optimizer):
    """SGD with Nesterov momentum; matrices and filters take an orthogonalised momentum step besides.

    Args:
        parameters: Parameters or groups of them; a group may set its own of the following.
        lr: Learning rate of both steps.
        momentum: Of both steps; they share one buffer.
        weight_decay: Added to the gradient as L2 penalty.

    Attributes:
        found_inf: As of PyTorch's fused optimisers: where this scalar is 1, a step leaves weights and momentum as they
            are, without the host having to know.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates the parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices: list[Tensor] = []
        directions: list[Tensor] = []
        rates: list[float] = []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            updates = self._momentum_updates(parameters, group)
            torch._foreach_add_(parameters, updates, alpha=-group["lr"])
            for parameter, update in zip(parameters, updates, strict=True):
                if parameter.ndim >= 2:
                    matrices.append(parameter)
                    directions.append(update.flatten(1))
                    rates.append(group["lr"])
        # All groups together, so that as many matrices as possible share a shape.
        steps = orthogonalise(directions)
        for parameter, step, rate in zip(matrices, steps, rates, strict=True):
            rows, columns = step.shape
            scale = ORTHOGONAL_SHARE * max(1.0, rows / columns) ** 0.5
            parameter.add_(step.reshape(parameter.shape), alpha=-rate * scale)
        return loss

    def _momentum_updates(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Returns the Nesterov directions and moves the buffers on; all zero and not at all in a step to leave out."""
        gradients, momentum = [p.grad for p in parameters if p.grad is not None], group["momentum"]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        if self.found_inf is None:
            torch._foreach_mul_(buffers, momentum)
        else:
            is_good = self.found_inf == 0
            # As integers, because NaN times zero is NaN.
            torch._foreach_mul_([gradient.view(torch.int32) for gradient in gradients], is_good.int())
            torch._foreach_mul_(buffers, torch.where(is_good, momentum, 1.0))
        torch._foreach_add_(buffers, gradients)
        updates = list(torch._foreach_add(gradients, buffers, alpha=momentum))
        if self.found_inf is not None:
            torch._foreach_mul_(updates, is_good.float())
        return updates


def orthogonalise(matrices: list[Tensor]) -> list[Tensor]:
    """Returns for each matrix (rows, columns) nearly the orthogonal matrix nearest to it, by Newton-Schulz.

    Matrices of one shape, or of its transpose, are computed as one batch. Singular values come out between about 0.7
    and 1.2; a zero matrix stays zero.
    """
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        rows, columns = matrix.shape
        by_shape[min(rows, columns), max(rows, columns)].append(index)
    results: list[Tensor] = [torch.empty(0)] * len(matrices)
    for (short, _), indices in by_shape.items():
        batch = torch.stack([_lying(matrices[i], short) for i in indices])
        for i, result in zip(indices, _newton_schulz(batch), strict=True):
            results[i] = _lying(result, len(matrices[i]))
    return results


def _lying(matrix: Tensor, rows: int) -> Tensor:
    return matrix if len(matrix) == rows else matrix.T


def _newton_schulz(batch: Tensor) -> Tensor:
    """Orthogonalises (N, rows, columns), rows <= columns; on GPUs in bfloat16, of which the quintic is tolerant."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = batch.to(torch.bfloat16) if batch.device.type != "cpu" else batch.float()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(batch.dtype)
