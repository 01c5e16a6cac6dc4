"""Parameter groups, learning-rate schedule and the moving average of the weights."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

from posefoundry.config import Train

ModelT = TypeVar("ModelT", bound=nn.Module)


def build_optimizer(model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """Builds AdamW or SGD with Nesterov momentum; weight decay touches weights alone, not biases or normalisation."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            is_weight = name == "weight" and not isinstance(module, nn.modules.batchnorm._BatchNorm)
            (decayed if is_weight else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.momentum, 0.999), foreach=True)
    return torch.optim.SGD(
        groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0, foreach=True
    )


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
    """

    def __init__(self, model: ModelT, decay: float, ramp_updates: float) -> None:
        self.model: ModelT = copy.deepcopy(model)
        self.model.eval().requires_grad_(False)
        self.decay, self.ramp_updates = decay, ramp_updates
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's present weights."""
        self.updates += 1
        weight = 1 - self.decay * (1 - math.exp(-self.updates / self.ramp_updates))
        averages = self.model.state_dict()
        floats: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                floats[0].append(averages[name])
                floats[1].append(value.detach())
            else:
                averages[name].copy_(value)
        torch._foreach_lerp_(floats[0], floats[1], weight)
