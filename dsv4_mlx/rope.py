"""Rotary positions on the last channels of a vector, in interleaved pairs (spec 5)."""

import math

import mlx.core as mx

from . import norm
from .config import ModelArgs


def inverse_frequencies(config: ModelArgs, ratio: int) -> mx.array:
    """Angle per position of each channel pair, [dr/2] float32 (spec 5).

    Window-only layers (ratio 0) use rope_theta and no YaRN. All of a compressed layer, its window keys and
    its queries included, uses compress_rope_theta with YaRN; cos and sin are never scaled.
    """
    dr = config.qk_rope_head_dim
    base = config.compress_rope_theta if ratio else config.rope_theta
    freqs = [base ** (-2 * i / dr) for i in range(dr // 2)]
    yarn = config.rope_scaling
    if ratio and yarn is not None and yarn["original_max_position_embeddings"] > 0:
        low, high = _yarn_range(yarn, dr, base)
        for i, freq in enumerate(freqs):
            ramp = min(max((i - low) / (high - low), 0.0), 1.0)
            freqs[i] = freq / yarn["factor"] * ramp + freq * (1 - ramp)
    return mx.array(freqs, dtype=mx.float32)


def _yarn_range(yarn: dict, dr: int, base: float) -> tuple[float, float]:
    """Pair indices between which YaRN blends from the plain frequency to the divided one (spec 5)."""

    def pair(turns: float) -> float:
        length = yarn["original_max_position_embeddings"]
        return dr * math.log(length / (2 * math.pi * turns)) / (2 * math.log(base))

    low = max(math.floor(pair(yarn["beta_fast"])), 0)
    high = min(math.ceil(pair(yarn["beta_slow"])), dr - 1)
    return low, high + 0.001 if low == high else high


def rotate(x: mx.array, positions: mx.array, frequencies: mx.array, inverse: bool = False) -> mx.array:
    """Turn the last 2*len(frequencies) channels of ``x`` by their position's angles (spec 5).

    x [B, S, ..., d], positions [S] or [B, S]; pair i is channels (2i, 2i+1) of the rotated part. The angle
    is one float32 product, the turn is computed wide, the result has x's dtype. ``inverse`` turns back.
    """
    angles = positions[..., None].astype(mx.float32) * frequencies  # (S, dr/2) or (B, S, dr/2)
    if angles.ndim == 2:
        angles = angles[None]
    angles = mx.expand_dims(angles, tuple(range(2, x.ndim - 1)))
    cos, sin = mx.cos(angles), mx.sin(angles)
    turns = cos - 1j * sin if inverse else cos + 1j * sin
    still, turned = mx.split(x, [x.shape[-1] - 2 * frequencies.size], axis=-1)
    pairs = norm.wide(turned).view(mx.complex64)  # one number a pair: one product turns it
    turned = (pairs * turns).view(mx.float32)
    return mx.concatenate([still, turned.astype(x.dtype)], axis=-1)
