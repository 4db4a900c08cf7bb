"""Manifold-constrained hyper-connections: n residual streams, mixed around every sub-layer (spec 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config
from .norm import wide


def sinkhorn(logits: Tensor, iters: int, eps: float) -> Tensor:
    """Make [..., n, n] logits doubly stochastic: softmax of the rows, then columns, then (rows, columns) iters-1 times.

    The last step normalises columns, so each destination stream is a convex combination of the sources (spec 4.1).
    """
    comb = logits.softmax(-1) + eps
    comb = comb / (comb.sum(-2, keepdim=True) + eps)
    for _ in range(iters - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return comb


def coefficients(streams: Tensor, fn: Tensor, eps: float) -> Tensor:
    """(x fn^T) / rms(x) of the flattened streams: streams [B, S, n, D], fn [m, nD] -> [B, S, m] (spec 4.1)."""
    x = wide(streams).flatten(-2)
    return F.linear(x, wide(fn)) * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def mix(pre: Tensor, streams: Tensor) -> Tensor:
    """sum_j pre_j X_j: pre [B, S, n], streams [B, S, n, D] -> [B, S, D], summed wide, rounded once."""
    return (pre[..., None] * wide(streams)).sum(-2).to(streams.dtype)


class HyperConnection(nn.Module):
    """One mixing site: fn [(2+n)n, nD], base [(2+n)n], scale [3] (spec 4.1, 4.2)."""

    def __init__(self, config: Config):
        super().__init__()
        n = self.n = config.hc_mult
        self.iters, self.eps, self.norm_eps = config.hc_sinkhorn_iters, config.hc_eps, config.rms_norm_eps
        self.fn = nn.Parameter(torch.empty((2 + n) * n, n * config.hidden_size))
        self.base = nn.Parameter(torch.empty((2 + n) * n))
        self.scale = nn.Parameter(torch.empty(3))

    def pre(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """streams [B, S, n, D] -> the sub-layer's input u [B, S, D], post [B, S, n], comb [B, S, n, n] (spec 4.1)."""
        n = self.n
        m = coefficients(streams, self.fn, self.norm_eps)
        base, scale = wide(self.base), wide(self.scale)
        pre = torch.sigmoid(m[..., :n] * scale[0] + base[:n]) + self.eps
        post = 2 * torch.sigmoid(m[..., n : 2 * n] * scale[1] + base[n : 2 * n])
        logits = (m[..., 2 * n :] * scale[2] + base[2 * n :]).unflatten(-1, (n, n))
        return mix(pre, streams), post, sinkhorn(logits, self.iters, self.eps)

    def post(self, v: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        """X'_k = post_k v + sum_j comb_jk X_j: the sum runs over comb's first index (spec 4.2). -> [B, S, n, D]."""
        mixed = torch.einsum("bsjk,bsjd->bskd", comb, wide(streams))
        return (post[..., None] * wide(v)[..., None, :] + mixed).to(streams.dtype)


class HyperHead(nn.Module):
    """The streams' last mixing: fn [n, nD], base [n], scale [1] (spec 4.3)."""

    def __init__(self, config: Config):
        super().__init__()
        self.eps, self.norm_eps = config.hc_eps, config.rms_norm_eps
        self.fn = nn.Parameter(torch.empty(config.hc_mult, config.hc_mult * config.hidden_size))
        self.base = nn.Parameter(torch.empty(config.hc_mult))
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, streams: Tensor) -> Tensor:
        """streams [B, S, n, D] -> [B, S, D]."""
        m = coefficients(streams, self.fn, self.norm_eps)
        return mix(torch.sigmoid(m * wide(self.scale) + wide(self.base)) + self.eps, streams)
