"""MuSGD's two steps apart and together, and its state saved and restored."""

import copy
import math

import pytest
import torch
from torch import nn

from posefoundry.training.musgd import ORTHOGONAL_SHARE, MuSGD, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (16, 40), (40, 16), (1, 9), (64, 9)])
def test_singular_values_become_nearly_one_and_directions_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    # Spread over two orders of magnitude, as momenta are.
    rank = min(shape)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -2, rank)) @ v
    (result,) = orthogonalise([matrix])
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.4
    assert values.max() < 1.3
    # In the basis of the matrix' own directions nothing but the diagonal is left.
    rotated = u.T @ result @ v.T
    assert (rotated - rotated.diag().diag()).abs().max() < 1e-3


def test_batches_by_shape_equal_matrices_alone() -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in [(4, 6), (6, 4), (4, 6), (3, 3), (1, 5)]]
    for together, matrix in zip(orthogonalise(matrices), matrices, strict=True):
        assert together.shape == matrix.shape
        torch.testing.assert_close(together, orthogonalise([matrix])[0])


def test_a_zero_matrix_stays_zero() -> None:
    assert orthogonalise([torch.zeros(3, 5)])[0].equal(torch.zeros(3, 5))


def train(optimizer: torch.optim.Optimizer, model: nn.Module, steps: range) -> None:
    for step in steps:
        x = torch.linspace(-1, 1, 3 * 5 * 5).view(1, 3, 5, 5) * (step + 1)
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 4))


def test_vectors_take_plain_sgd_steps() -> None:
    ours, plain = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    optimizers = MuSGD([ours], **options), torch.optim.SGD([plain], nesterov=True, **options)
    for step in range(4):
        for parameter, optimizer in zip((ours, plain), optimizers, strict=True):
            parameter.grad = torch.linspace(-1, 1, 5) * (step - 1.5)
            optimizer.step()
        torch.testing.assert_close(ours, plain)


def test_filters_take_the_orthogonal_step_besides() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(12, 2, 2, 2), torch.randn(12, 2, 2, 2)
    ours, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours.grad, plain.grad = gradient.clone(), gradient.clone()
    MuSGD([ours], lr=0.1, momentum=0.9).step()
    torch.optim.SGD([plain], lr=0.1, momentum=0.9, nesterov=True).step()
    besides = (plain - ours).detach() / 0.1 / ORTHOGONAL_SHARE  # rows / columns: 12 / 8
    expected = orthogonalise([gradient.flatten(1)])[0] * 1.5**0.5
    torch.testing.assert_close(besides.flatten(1), expected, rtol=1e-3, atol=1e-4)


def test_state_survives_saving() -> None:
    through, stopped = small_model(), small_model()
    whole = MuSGD(through.parameters(), lr=0.01)
    train(whole, through, range(6))
    first = MuSGD(stopped.parameters(), lr=0.01)
    train(first, stopped, range(3))
    resumed = copy.deepcopy(stopped)
    second = MuSGD(resumed.parameters(), lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, resumed, range(3, 6))
    for one, other in zip(through.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_parameters_without_gradient_stay() -> None:
    model = small_model()
    before = model[3].weight.detach().clone()
    optimizer = MuSGD(model.parameters(), lr=0.1)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.step()
    assert torch.equal(model[3].weight, before)
    assert model[3].weight not in optimizer.state


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_a_step_that_is_to_be_left_out_changes_nothing(weight_decay: float) -> None:
    """As on a GPU, where the host doesn't wait to hear whether the step is good."""
    models = ours, undisturbed = small_model(), small_model()
    optimizers = [MuSGD(model.parameters(), lr=0.01, weight_decay=weight_decay) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(optimizer, model, range(2))
    for parameter in ours.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    optimizers[0].found_inf = torch.ones(())
    optimizers[0].step()
    optimizers[0].found_inf = torch.zeros(())
    for model, optimizer in zip(models, optimizers, strict=True):
        train(optimizer, model, range(2, 4))
    for one, other in zip(ours.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(one, other)
