"""Parameter groups, learning-rate schedule and the moving average of the weights."""

import copy
import math
from collections import defaultdict
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from posefoundry.config import Train
from posefoundry.models import PoseModel
from posefoundry.training.musgd import MuSGD

ModelT = TypeVar("ModelT", bound=nn.Module)

CLASS_RATE_SCALE = 3.0  # as published for MuSGD


def build_optimizer(model: PoseModel, settings: Train) -> torch.optim.Optimizer:
    """Builds AdamW, SGD with Nesterov momentum or MuSGD.

    Weight decay touches weights alone, not biases or normalisation. In MuSGD the class branches learn three times as
    fast: a group's `rate_scale` says by what the learning rate is to be multiplied.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    fast = set(model.head.class_branches().parameters()) if settings.optimizer == "musgd" else set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            is_weight = name == "weight" and not isinstance(module, nn.modules.batchnorm._BatchNorm)
            groups[is_weight, CLASS_RATE_SCALE if parameter in fast else 1.0].append(parameter)
    described = [
        {
            "params": parameters,
            "weight_decay": settings.weight_decay if is_weight else 0.0,
            "lr": settings.learning_rate * rate_scale,
            "rate_scale": rate_scale,
        }
        for (is_weight, rate_scale), parameters in groups.items()
    ]
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(described, lr=settings.learning_rate, betas=(settings.momentum, 0.999), fused=True)
        case "sgd":
            nesterov = settings.momentum > 0
            sgd = torch.optim.SGD(
                described, lr=settings.learning_rate, momentum=settings.momentum, nesterov=nesterov, fused=True
            )
            if nesterov:
                _begin_momentum_at_zero(sgd)
            return sgd
        case "musgd":
            return MuSGD(described, lr=settings.learning_rate, momentum=settings.momentum)


def _begin_momentum_at_zero(sgd: torch.optim.SGD) -> None:
    """Gives the first step the buffers that it would make: where it is left out, a fused step leaves them as they are.

    From zero, without dampening, the first step's momentum is its gradient, as without buffers.
    """
    for group in sgd.param_groups:
        for parameter in group["params"]:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def learning_rate_at(step: int, steps_per_epoch: int, settings: Train) -> float:
    """Returns the learning rate of a step: linear warm-up, then cosine or linear descent to the final fraction."""
    warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / warmup_steps
    progress = min(1.0, step / max(1, settings.epochs * steps_per_epoch - 1))
    falling = (1 + math.cos(math.pi * progress)) / 2 if settings.schedule == "cosine" else 1 - progress
    final = settings.final_learning_rate_fraction
    return settings.learning_rate * (final + (1 - final) * falling)


class WeightAverage(Generic[ModelT]):
    """Exponential moving average of weights and BatchNorm statistics (Polyak and Juditsky 1992).

    The decay ramps up by 1 - exp(-updates / ramp), so that the first, poor weights are soon forgotten.

    Args:
        model: Is followed. It may be loaded and trained, but its tensors must stay where they are.
        decay: What is kept of the average at each update, in the end.
        ramp_updates: How slowly the decay rises to that.
    """

    def __init__(self, model: ModelT, decay: float, ramp_updates: float) -> None:
        self.model: ModelT = copy.deepcopy(model)
        self.model.eval().requires_grad_(False)
        self.decay, self.ramp_updates = decay, ramp_updates
        self.updates = 0
        # Found once: gathering a state dict takes longer than averaging its tensors. Both models keep their tensors.
        self._floats: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        self._counters: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for average, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            averages, values = self._floats if average.dtype.is_floating_point else self._counters
            averages.append(average)
            values.append(value)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model's present weights."""
        self.updates += 1
        weight = 1 - self.decay * (1 - math.exp(-self.updates / self.ramp_updates))
        torch._foreach_lerp_(*self._floats, weight)
        if self._counters[0]:
            torch._foreach_copy_(*self._counters)

    def state_dict(self) -> dict[str, Any]:
        """Returns the averages and how many updates made them."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them up again."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
