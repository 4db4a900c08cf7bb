"""Rotary position embedding by layer kind: plain, or with YaRN, and its inverse (spec 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import Config


def inverse_frequencies(config: Config, ratio: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """freq_i = base^(-2i/dr), i = 0 .. dr/2-1, of a layer with this compression ratio -> [dr/2] (spec 5).

    Window-only layers (ratio 0) turn with `rope_theta` and no YaRN; every other layer turns everything in it with
    `compress_rope_theta` and YaRN, at any length. `dtype` is float32, or float64 for the exact run.
    """
    dim = config.qk_rope_head_dim
    base = config.compress_rope_theta if ratio else config.rope_theta
    index = torch.arange(0, dim, 2, dtype=dtype)
    freq = 1.0 / torch.pow(torch.tensor(base, dtype=dtype), index / dim)
    yarn = config.rope_scaling
    if not ratio or yarn is None or yarn.original_max_position_embeddings == 0:
        return freq
    low, high = yarn_range(config)
    ramp = ((torch.arange(dim // 2, dtype=dtype) - low) / (high - low)).clamp(0, 1)
    return freq / yarn.factor * ramp + freq * (1 - ramp)


def yarn_range(config: Config) -> tuple[float, float]:
    """The two pair indices between which YaRN fades from kept to interpolated frequencies (spec 5)."""
    yarn, dim = config.rope_scaling, config.qk_rope_head_dim

    def pair_index(turns: float) -> float:
        return (
            dim
            * math.log(yarn.original_max_position_embeddings / (2 * math.pi * turns))
            / (2 * math.log(config.compress_rope_theta))
        )

    low = max(math.floor(pair_index(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_index(yarn.beta_slow)), dim - 1)
    return low, high + 0.001 if low == high else high


def rotate(x: Tensor, positions: Tensor, frequencies: Tensor, inverse: bool = False) -> Tensor:
    """Turn the last 2*len(frequencies) channels of x by their position's angle (spec 5).

    x [B, S, ..., d], positions [S] or [B, S] -> like x. Channels (2i, 2i+1) are one complex number; the angle is one
    product in the frequencies' type; `inverse` turns back (the conjugate).
    """
    dim = 2 * frequencies.shape[-1]
    angle = positions.to(frequencies.dtype)[..., None] * frequencies  # (S, dr/2) or (B, S, dr/2)
    angle = angle if positions.ndim == 2 else angle[None]
    angle = angle.reshape(*angle.shape[:2], *[1] * (x.ndim - 3), dim // 2)
    cos, sin = angle.cos(), angle.sin()
    sin = -sin if inverse else sin
    content, rope = x[..., :-dim], wide_pairs(x[..., -dim:], frequencies.dtype)
    real, imaginary = rope.unbind(-1)
    turned = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return torch.cat((content, turned.flatten(-2).to(x.dtype)), dim=-1)


def wide_pairs(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., dr] -> [..., dr/2, 2] in the type of the angles."""
    return x.to(dtype).unflatten(-1, (-1, 2))
