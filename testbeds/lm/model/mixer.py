"""A mixer without attention: short convolution, then a gated diagonal linear recurrence, in plain torch.

The recurrence is the RG-LRU of Griffin (arXiv 2402.19427, section 2.4) without its input gate, which leaves as many
matrices as attention has: ``a_t = exp(-8 softplus(decay) * sigmoid(rate x_t))``,
``h_t = a_t h_{t-1} + sqrt(1 - a_t²) x_t``, elementwise. Its state has a fixed size, whatever the length of the text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ModelConfig
from .linear import Linear

KERNEL = 4
SHARPNESS = 8.0
SLOWEST, FASTEST = 0.999, 0.9


class Recurrence(nn.Module):
    """Takes the place of attention in a block; positions come from the recurrence, so ``rotation`` is not used."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.value, self.gate, self.rate = Linear(width, width), Linear(width, width), Linear(width, width)
        self.convolution = nn.Parameter(torch.empty(width, 1, KERNEL))
        # At sigmoid = 1/2 the channels forget at rates a spread from FASTEST to SLOWEST.
        a = torch.linspace(FASTEST, SLOWEST, width, dtype=torch.float64)
        self.decay = nn.Parameter(torch.log(torch.expm1(-2 * a.log() / SHARPNESS)).float())
        self.out = Linear(width, width)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        value = self.value(x).transpose(1, 2)  # (B, W, T)
        value = F.conv1d(F.pad(value, (KERNEL - 1, 0)), self.convolution, groups=value.shape[1]).transpose(1, 2)
        log_a = -SHARPNESS * F.softplus(self.decay) * torch.sigmoid(self.rate(x).float())  # (B, T, W), negative
        # The square root's slope is unbounded at 0.
        drive = torch.sqrt(torch.clamp(-torch.expm1(2 * log_a), min=1e-6)) * value.float()
        h = scan(log_a.exp(), drive).to(value.dtype)
        return self.out(h * F.silu(self.gate(x)))


def scan(a: Tensor, b: Tensor) -> Tensor:
    """``h_t = a_t h_{t-1} + b_t`` with ``h_{-1} = 0`` along axis 1 of (B, T, W), in log2(T) steps (Hillis and Steele).

    After the step of stride s, (a_t, b_t) stands for the affine map of the 2s tokens up to t. Nothing is divided, so
    decays may be as small as they like.
    """
    stride = 1
    while stride < a.shape[1]:
        b = torch.cat((b[:, :stride], b[:, stride:] + a[:, stride:] * b[:, :-stride]), dim=1)
        a = torch.cat((a[:, :stride], a[:, stride:] * a[:, :-stride]), dim=1)
        stride *= 2
    return b
