"""The building blocks of the three families. Shapes: x_BCHW; `c_in`, `c_out` are channels after scaling.

Attribute names (`cv1`, `m`, `attn` ...) are those of the published checkpoints, so that their tensors fit by name.
"""

from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Both constants are the published families' own, not PyTorch's defaults.
BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.03

# What a C3k2 repeats inside: plain bottlenecks, small C3k blocks, or a bottleneck followed by attention.
Unit = Literal["bottleneck", "c3k", "attention"]


class Conv(nn.Module):
    """Convolution without bias, BatchNorm and SiLU (or no activation). Keeps the size at stride 1, halves it at 2."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, activation: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(c_out, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
        self.act = nn.SiLU(inplace=True) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, c_out, H / stride, W / stride)."""
        return self.act(self.bn(self.conv(x)))

    @torch.no_grad()
    def fuse(self) -> Self:
        """Folds the BatchNorm's running statistics into the convolution, which gains a bias. For inference only."""
        if isinstance(self.bn, nn.BatchNorm2d | nn.SyncBatchNorm):
            bn = self.bn
            scale = bn.weight / torch.sqrt(cast(Tensor, bn.running_var) + bn.eps)
            self.conv.weight.mul_(scale[:, None, None, None])
            self.conv.bias = nn.Parameter(bn.bias - cast(Tensor, bn.running_mean) * scale)
            self.bn = nn.Identity()
        return self


class Bottleneck(nn.Module):
    """Two 3x3 convolutions; adds its input if the shortcut is on and the channels agree."""

    def __init__(self, c_in: int, c_out: int, *, shortcut: bool = True, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = Conv(c_in, hidden, 3)
        self.cv2 = Conv(hidden, c_out, 3)
        self.adds_input = shortcut and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, c_out, H, W)."""
        y = self.cv2(self.cv1(x))
        return x + y if self.adds_input else y


class C2f(nn.Module):
    """Splits in two, chains `repeats` bottlenecks on the second half and fuses both halves with every output."""

    def __init__(self, c_in: int, c_out: int, repeats: int, *, shortcut: bool, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = Conv(c_in, 2 * hidden)
        self.cv2 = Conv((2 + repeats) * hidden, c_out)
        self.m = nn.ModuleList(self.unit(hidden, shortcut) for _ in range(repeats))

    def unit(self, channels: int, shortcut: bool) -> nn.Module:
        """Returns one link of the chain."""
        return Bottleneck(channels, channels, shortcut=shortcut, expansion=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, c_out, H, W)."""
        parts = list(self.cv1(x).chunk(2, dim=1))
        for unit in self.m:
            parts.append(unit(parts[-1]))
        return self.cv2(torch.cat(parts, dim=1))


class C3k2(C2f):
    """A C2f whose units are chosen by `unit`."""

    def __init__(self, c_in: int, c_out: int, repeats: int, *, expansion: float = 0.5, unit: Unit) -> None:
        self._unit = unit
        super().__init__(c_in, c_out, repeats, shortcut=True, expansion=expansion)

    def unit(self, channels: int, shortcut: bool) -> nn.Module:
        """Returns one link of the chain."""
        match self._unit:
            case "bottleneck":
                return Bottleneck(channels, channels, shortcut=shortcut)
            case "c3k":
                return C3k(channels, channels)
            case "attention":
                return nn.Sequential(Bottleneck(channels, channels, shortcut=shortcut), PSABlock(channels))


class C2(nn.Module):
    """Splits in two, sends the first half through `repeats` bottlenecks and fuses it with the second."""

    def __init__(self, c_in: int, c_out: int, repeats: int, *, shortcut: bool) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = Conv(c_in, 2 * hidden)
        self.cv2 = Conv(2 * hidden, c_out)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut=shortcut, expansion=1.0) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, c_out, H, W)."""
        first, second = self.cv1(x).chunk(2, dim=1)
        return self.cv2(torch.cat((self.m(first), second), dim=1))


class C3k(nn.Module):
    """Two bottlenecks on one 1x1 projection of the input, fused with another projection."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = Conv(c_in, hidden)
        self.cv2 = Conv(c_in, hidden)
        self.cv3 = Conv(2 * hidden, c_out)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, expansion=1.0) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, c_out, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))


class SPPF(nn.Module):
    """Spatial pyramid pooling: three chained 5x5 max-pools see windows of 5, 9 and 13 cells.

    With `residual` the first convolution has no activation and the block adds its input.
    """

    def __init__(self, c_in: int, c_out: int, *, residual: bool = False) -> None:
        super().__init__()
        self.cv1 = Conv(c_in, c_in // 2, activation=not residual)
        self.cv2 = Conv(4 * (c_in // 2), c_out)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, c_out, H, W)."""
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], kernel_size=5, stride=1, padding=2))
        y = self.cv2(torch.cat(parts, dim=1))
        return x + y if self.residual else y


class Attention(nn.Module):
    """Multi-head self-attention over all cells, with a depthwise convolution of the values as position encoding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // 64, 1)
        self.value_size = channels // self.heads
        self.key_size = self.value_size // 2
        self.qkv = Conv(channels, channels + 2 * self.heads * self.key_size, activation=False)
        self.proj = Conv(channels, channels, activation=False)
        self.pe = Conv(channels, channels, 3, groups=channels, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, C, H, W)."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(x).view(batch, self.heads, -1, height * width)  # per head: q, k, v
        query, key, value = qkv.split((self.key_size, self.key_size, self.value_size), dim=2)
        # Cells are the sequence: (B, heads, H*W, size), and the scale is 1 / sqrt(key size), the function's default.
        attended = F.scaled_dot_product_attention(
            query.transpose(2, 3), key.transpose(2, 3), value.transpose(2, 3)
        ).transpose(2, 3)
        position = self.pe(value.reshape(batch, channels, height, width))
        return self.proj(attended.reshape(batch, channels, height, width) + position)


class PSABlock(nn.Module):
    """Attention and a feed-forward pair of 1x1 convolutions, each added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = Attention(channels)
        self.ffn = nn.Sequential(Conv(channels, 2 * channels), Conv(2 * channels, channels, activation=False))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, C, H, W)."""
        x = x + self.attn(x)
        return x + self.ffn(x)


class C2PSA(nn.Module):
    """Splits in two, sends the second half through `repeats` attention blocks and fuses it with the first."""

    def __init__(self, c_in: int, c_out: int, repeats: int) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = Conv(c_in, 2 * hidden)
        self.cv2 = Conv(2 * hidden, c_out)
        self.m = nn.Sequential(*(PSABlock(hidden) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, c_out, H, W)."""
        first, second = self.cv1(x).chunk(2, dim=1)
        return self.cv2(torch.cat((first, self.m(second)), dim=1))


class Concat(nn.Module):
    """Joins feature maps of one size along their channels."""

    def forward(self, *features: Tensor) -> Tensor:
        """Returns (B, sum of channels, H, W)."""
        return torch.cat(features, dim=1)
