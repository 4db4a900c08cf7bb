"""RMS normalisation (spec 5), and the dtype in which the model's fp32 islands compute (spec 2)."""

import mlx.core as mx
import mlx.nn as nn


def wide(x: mx.array) -> mx.array:
    """``x`` in float32 when it is bfloat16 or float16, otherwise ``x`` itself."""
    return x.astype(mx.float32) if x.dtype in (mx.bfloat16, mx.float16) else x


def inverse_rms(x: mx.array, eps: float) -> mx.array:
    """1 / sqrt(mean(x^2) + eps) over the last axis, kept: [..., D] -> [..., 1], in x's dtype."""
    return mx.rsqrt(x.square().mean(axis=-1, keepdims=True) + eps)


def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """weight * x / rms(x) over the last axis, computed wide and rounded once to x's dtype (spec 5).

    ``weight`` [D] or None. Not ``mx.fast.rms_norm``: its CPU form rounds before the weight as well.
    """
    t = wide(x)
    t = t * inverse_rms(t, eps)
    if weight is not None:
        t = wide(weight) * t
    return t.astype(x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm with a weight [D] (spec 5)."""

    def __init__(self, dims: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = mx.ones((dims,))

    def __call__(self, x: mx.array) -> mx.array:
        """[..., D] -> [..., D]."""
        return rms_norm(x, self.weight, self.eps)
