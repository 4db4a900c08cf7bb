"""RMSNorm (spec 5), and the rule for where arithmetic is wide."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def wide(x: Tensor) -> Tensor:
    """`x` in at least float32: the type in which norms, rotations, mixing, routing and softmax are computed (spec
    2)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, rounded once to x.dtype (spec 5).

    x [..., D], weight [D] -> [..., D].
    """
    t = wide(x)
    t = t * torch.rsqrt(t.square().mean(-1, keepdim=True) + eps)
    return (wide(weight) * t).to(x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm with a weight [dim]."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)
