"""The schedule by hand, the parameter groups by name, the average by its formula."""

import math

import pytest
import torch
from torch import nn

from posefoundry.config import Train
from posefoundry.models import build_model
from posefoundry.training.musgd import MuSGD
from posefoundry.training.optimizer import WeightAverage, build_optimizer, learning_rate_at


def settings(**changes: object) -> Train:
    base = {"epochs": 10, "warmup_epochs": 1, "learning_rate": 0.1, "final_learning_rate_fraction": 0.01}
    return Train(**(base | changes))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learning_rate_rises_then_falls_to_its_final_fraction(schedule: str) -> None:
    rates = [learning_rate_at(step, 20, settings(schedule=schedule)) for step in range(200)]
    assert rates[0] == pytest.approx(0.1 / 20)
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] == pytest.approx(0.001)


def test_half_way_by_hand() -> None:
    # Step 100 of 199: progress 0.5025.
    p = 100 / 199
    assert learning_rate_at(100, 20, settings(schedule="linear")) == pytest.approx(0.1 * (0.01 + 0.99 * (1 - p)))
    cosine = 0.1 * (0.01 + 0.99 * (1 + math.cos(math.pi * p)) / 2)
    assert learning_rate_at(100, 20, settings(schedule="cosine")) == pytest.approx(cosine)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_weight_decay_spares_biases_and_normalisation(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = build_optimizer(model, settings(optimizer=kind, weight_decay=0.05))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(model[0].weight)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_momentum_begins_at_zero_and_the_first_steps_are_those_of_plain_sgd() -> None:
    """A fused step that the device leaves out would else hand on memory that nobody has written."""

    def network() -> nn.Sequential:
        torch.manual_seed(4)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    ours, theirs = network(), network()
    given = settings(optimizer="sgd", weight_decay=0.0, momentum=0.9)
    optimizer = build_optimizer(ours, given)
    assert all((optimizer.state[parameter]["momentum_buffer"] == 0).all() for parameter in ours.parameters())
    plain = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    image = torch.rand(2, 3, 8, 8)
    for _ in range(3):
        for model, steps in ((ours, optimizer), (theirs, plain)):
            steps.zero_grad()
            model(image).square().sum().backward()
            steps.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert not build_optimizer(network(), given.model_copy(update={"momentum": 0.0})).state


def test_average_follows_its_formula() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, decay=0.9, ramp_updates=5)
    expected = model.weight.detach().clone()
    for update in range(1, 4):
        with torch.no_grad():
            model.weight.add_(1)
            model.running_mean.add_(2)
            model.num_batches_tracked.add_(1)
        average.update()
        decay = 0.9 * (1 - math.exp(-update / 5))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.model.weight, expected, check_stride=False)
    assert average.model.num_batches_tracked == 3
    assert not average.model.weight.requires_grad


def test_class_branches_of_both_heads_learn_three_times_as_fast_by_musgd() -> None:
    model = build_model("yolo26n-pose")
    optimizer = build_optimizer(model, settings(optimizer="musgd"))
    assert isinstance(optimizer, MuSGD)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {names[id(p)]: group["rate_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scales.keys() == set(names.values())
    for name, scale in scales.items():
        assert scale == (3 if name.startswith(("model.23.cv3.", "model.23.one2one_cv3.")) else 1), name


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_other_optimisers_have_one_rate(kind: str) -> None:
    optimizer = build_optimizer(build_model("yolo26n-pose"), settings(optimizer=kind))
    assert {group["rate_scale"] for group in optimizer.param_groups} == {1}
