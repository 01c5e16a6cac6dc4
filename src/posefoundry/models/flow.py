"""A normalising flow for residual log-likelihood estimation of keypoints (Li et al. 2021, arXiv:2107.11291)."""

import math

import torch
from torch import Tensor, nn

INITIAL_GAIN = 0.01


class RealNVP(nn.Module):
    """Six affine couplings on 2-D points (Dinh et al. 2017, arXiv:1605.08803). Used in training only.

    A coupling keeps one coordinate, chosen by its row of `mask`, and scales and shifts the other by what two small
    networks make of the kept one. Names and buffers (`loc`, `cov`: the standard normal prior) are the published ones.
    """

    mask: Tensor

    def __init__(self, couplings: int = 6, hidden: int = 64) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(2))
        self.register_buffer("cov", torch.eye(2))
        self.register_buffer("mask", torch.tensor([[0.0, 1.0], [1.0, 0.0]] * (couplings // 2)))
        self.s = nn.ModuleList(nn.Sequential(*_layers(hidden), nn.Tanh()) for _ in range(couplings))
        self.t = nn.ModuleList(nn.Sequential(*_layers(hidden)) for _ in range(couplings))
        # As in the authors' code the flow begins next to the identity, so that far errors of an untrained model, up to
        # 100 standard deviations, don't grow from coupling to coupling.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=INITIAL_GAIN)

    def log_prob(self, points: Tensor) -> Tensor:
        """Returns the log density (N,) of points (N, 2)."""
        z = points
        log_determinant = points.new_zeros(points.shape[0])
        for mask, scale, shift in zip(self.mask.flip(0), reversed(self.s), reversed(self.t), strict=True):
            kept = z * mask
            s = scale(kept) * (1 - mask)
            z = kept + (1 - mask) * (z - shift(kept)) * torch.exp(-s)
            log_determinant = log_determinant - s.sum(dim=1)
        return -0.5 * z.square().sum(dim=1) - math.log(2 * math.pi) + log_determinant


def _layers(hidden: int) -> list[nn.Module]:
    return [nn.Linear(2, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2)]
