"""Manifold-constrained hyper-connections: n residual streams, mixed around every sub-layer (spec 4)."""

import mlx.core as mx
import mlx.nn as nn

from . import norm
from .config import ModelArgs


def sinkhorn(logits: mx.array, iters: int, eps: float) -> mx.array:
    """Row softmax, then alternating column and row normalisation, the last one over columns (spec 4.1).

    logits [..., n, n] -> [..., n, n]; ``iters`` column steps and ``iters`` - 1 row steps.
    """
    matrix = mx.softmax(logits, axis=-1) + eps
    matrix = matrix / (matrix.sum(axis=-2, keepdims=True) + eps)
    for _ in range(iters - 1):
        matrix = matrix / (matrix.sum(axis=-1, keepdims=True) + eps)
        matrix = matrix / (matrix.sum(axis=-2, keepdims=True) + eps)
    return matrix


def project(streams: mx.array, fn: mx.array, eps: float) -> mx.array:
    """(x fn^T) / rms(x), x the streams flattened stream-major: -> [B, S, rows of fn] (spec 4.1)."""
    x = norm.wide(streams).flatten(-2)
    return (x @ fn.T) * norm.inverse_rms(x, eps)


def collapse(streams: mx.array, pre: mx.array) -> mx.array:
    """sum_j pre_j X_j, summed wide and rounded once: [B, S, n, D], [B, S, n] -> [B, S, D] (spec 4.1)."""
    return (pre[..., None] * norm.wide(streams)).sum(axis=-2).astype(streams.dtype)


class HyperConnection(nn.Module):
    """One site: collapse the streams before a sub-layer, spread its output after (spec 4.1, 4.2)."""

    def __init__(self, config: ModelArgs):
        super().__init__()
        n = config.hc_mult
        self.streams, self.iters = n, config.hc_sinkhorn_iters
        self.hc_eps, self.norm_eps = config.hc_eps, config.rms_norm_eps
        self.fn = mx.zeros(((2 + n) * n, n * config.hidden_size))
        self.base = mx.zeros(((2 + n) * n,))
        self.scale = mx.ones((3,))

    def pre(self, streams: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """streams [B, S, n, D] -> sub-layer input [B, S, D], post [B, S, n], comb [B, S, n, n] (spec 4.1)."""
        n = self.streams
        a, c, m = mx.split(project(streams, self.fn, self.norm_eps), [n, 2 * n], axis=-1)
        base_a, base_c, base_m = mx.split(self.base, [n, 2 * n])
        pre = mx.sigmoid(a * self.scale[0] + base_a) + self.hc_eps
        post = 2 * mx.sigmoid(c * self.scale[1] + base_c)
        mixing = (m * self.scale[2] + base_m).reshape(*m.shape[:-1], n, n)
        return collapse(streams, pre), post, sinkhorn(mixing, self.iters, self.hc_eps)

    def post(self, v: mx.array, streams: mx.array, post: mx.array, comb: mx.array) -> mx.array:
        """X'_k = post_k v + sum_j comb_jk X_j: row j of comb is the source stream (spec 4.2).

        v [B, S, D], streams [B, S, n, D], post [B, S, n], comb [B, S, n, n] -> [B, S, n, D].
        """
        mixed = comb.swapaxes(-1, -2) @ norm.wide(streams)
        return (post[..., None] * norm.wide(v)[..., None, :] + mixed).astype(streams.dtype)


class HyperHead(nn.Module):
    """Collapse of the streams before the final norm (spec 4.3)."""

    def __init__(self, config: ModelArgs):
        super().__init__()
        n = config.hc_mult
        self.hc_eps, self.norm_eps = config.hc_eps, config.rms_norm_eps
        self.fn = mx.zeros((n, n * config.hidden_size))
        self.base = mx.zeros((n,))
        self.scale = mx.ones((1,))

    def __call__(self, streams: mx.array) -> mx.array:
        """[B, S, n, D] -> [B, S, D]."""
        a = project(streams, self.fn, self.norm_eps)
        return collapse(streams, mx.sigmoid(a * self.scale + self.base) + self.hc_eps)
