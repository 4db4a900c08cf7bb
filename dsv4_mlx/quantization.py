"""Packed weights, the published program's rounding of activations, linear layers (spec 12)."""

import mlx.core as mx
import mlx.nn as nn

from . import norm
from .config import ModelArgs

FP8_MAX = 448.0
FP4_MAX = 6.0
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # e2m1 magnitudes; bit 3 of a code is the sign
TILE = 128  # fp8 weights have one scale a TILE x TILE tile, activations one for TILE channels
FP4_GROUP = 32
KV_GROUP = 64


def decode_scale(scale: mx.array) -> mx.array:
    """Scales as float32: E8M0 bytes are 2^(byte - 127), 255 is NaN; floats are themselves (spec 12.1)."""
    if scale.dtype != mx.uint8:
        return scale.astype(mx.float32)
    bits = scale.astype(mx.uint32) << 23
    bits = mx.where(scale == 0, mx.array(0x00400000, mx.uint32), bits)  # 2^-127 is subnormal
    bits = mx.where(scale == 255, mx.array(0x7FC00000, mx.uint32), bits)
    return bits.view(mx.float32)


def decode_fp8(weight: mx.array, scale: mx.array) -> mx.array:
    """e4m3 bytes [out, in] with a scale a 128x128 tile -> float32 [out, in], exactly (spec 12.1).

    Tiles at the edges may be partial: scale is [ceil(out/128), ceil(in/128)], E8M0 bytes or floats.
    """
    rows, cols = weight.shape
    grid = (-(-rows // TILE), -(-cols // TILE))
    if tuple(scale.shape) != grid:
        raise ValueError(f"An fp8 weight of {rows}x{cols} needs scales of {grid}, not {tuple(scale.shape)}.")
    tiles = decode_scale(scale)
    tiles = mx.repeat(mx.repeat(tiles, TILE, axis=0)[:rows], TILE, axis=1)[:, :cols]
    return mx.from_fp8(weight.view(mx.uint8), dtype=mx.float32) * tiles


def decode_fp4(packed: mx.array, scale: mx.array) -> mx.array:
    """e2m1 codes, two a byte and the low nibble first, [out, in/2] -> float32 [out, in], exactly (spec 12.3).

    scale [out, in/32] as E8M0 bytes.
    """
    rows, half = packed.shape
    if tuple(scale.shape) != (rows, -(-2 * half // FP4_GROUP)):
        raise ValueError(f"An fp4 weight of {rows}x{2 * half} has scales of {tuple(scale.shape)}.")
    bytes_ = packed.view(mx.uint8)
    codes = mx.stack([bytes_ & 15, bytes_ >> 4], axis=-1).reshape(rows, 2 * half)
    table = mx.array(FP4_VALUES + tuple(-v for v in FP4_VALUES), dtype=mx.float32)
    return table[codes] * mx.repeat(decode_scale(scale), FP4_GROUP, axis=1)[:, : 2 * half]


def power_of_two_above(x: mx.array) -> mx.array:
    """2^ceil(log2 x) of normal float32 x > 0: exponent + 1 if any mantissa bit is set (spec 12.2)."""
    bits = x.view(mx.uint32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).astype(mx.uint32)
    return (exponent << 23).view(mx.float32)


def round_fp8(x: mx.array) -> mx.array:
    """Nearest e4m3 value, ties to even, of float32 within +-448."""
    return mx.from_fp8(mx.to_fp8(x), dtype=mx.float32)


def round_fp4(x: mx.array) -> mx.array:
    """Nearest e2m1 value, ties to the even code, of float32 within +-6 (spec 12.6)."""
    size = mx.abs(x)
    step = mx.where(size < 2, 0.5, mx.where(size < 4, 1.0, 2.0))
    return mx.round(x / step) * step  # mx.round sends halves to even, and evenness survives the change of step


def _in_groups(x: mx.array, group: int) -> mx.array:
    """[..., C] -> [..., ceil(C/group), group] float32; a partial last group is padded with zeros."""
    x = x.astype(mx.float32)
    missing = -x.shape[-1] % group
    if missing:
        x = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return x.reshape(*x.shape[:-1], x.shape[-1] // group, group)


def fp8_fake_quant(x: mx.array, group: int) -> mx.array:
    """Round to e4m3 with a power-of-two scale a group of channels, back in x's dtype (spec 12.2)."""
    groups = _in_groups(x, group)
    top = mx.maximum(mx.abs(groups).max(axis=-1, keepdims=True), 1e-4)
    scale = power_of_two_above(top * (1 / FP8_MAX))
    rounded = round_fp8(mx.clip(groups / scale, -FP8_MAX, FP8_MAX)) * scale
    return rounded.flatten(-2)[..., : x.shape[-1]].astype(x.dtype)


def fp4_fake_quant(x: mx.array, group: int = FP4_GROUP) -> mx.array:
    """Round to e2m1 with a power-of-two scale a group of channels, back in x's dtype (spec 12.6)."""
    groups = _in_groups(x, group)
    top = mx.maximum(mx.abs(groups).max(axis=-1, keepdims=True), FP4_MAX * 2.0**-126)
    scale = power_of_two_above(top / FP4_MAX)
    rounded = round_fp4(mx.clip(groups / scale, -FP4_MAX, FP4_MAX)) * scale
    return rounded.flatten(-2)[..., : x.shape[-1]].astype(x.dtype)


def hadamard(x: mx.array) -> mx.array:
    """x H / sqrt(C), H Sylvester's matrix over the last axis (a power of 2), computed wide (spec 12.5)."""
    if x.size == 0:  # no row yet: MLX's transform refuses empty arrays
        return x
    return mx.hadamard_transform(norm.wide(x)).astype(x.dtype)


class KVQuant(nn.Module):
    """The cache's rounding: fp8 in groups of 64, rotated channels left out (spec 6.3); weightless."""

    def __init__(self, config: ModelArgs):
        super().__init__()
        self.simulate = config.quantization_simulation == "published"
        self.rope_dim = config.qk_rope_head_dim

    def __call__(self, x: mx.array) -> mx.array:
        """[..., d] -> [..., d]."""
        if not self.simulate:
            return x
        plain, rotated = mx.split(x, [x.shape[-1] - self.rope_dim], axis=-1)
        if plain.shape[-1] == 0:
            return x
        return mx.concatenate([fp8_fake_quant(plain, KV_GROUP), rotated], axis=-1)


class IndexQuant(nn.Module):
    """The indexer's rounding of queries and keys: Hadamard, then fp4 in groups of 32 (spec 9); weightless.

    Without the simulation it is the identity: the rotation is orthogonal and both sides skip it.
    """

    def __init__(self, config: ModelArgs):
        super().__init__()
        self.simulate = config.quantization_simulation == "published"

    def __call__(self, x: mx.array) -> mx.array:
        """[..., dI] -> [..., dI]."""
        return fp4_fake_quant(hadamard(x)) if self.simulate else x


def linear_input(x: mx.array, layer: nn.Module) -> mx.array:
    """What the product of a layer with ``stored`` and ``simulate`` sees of its input (spec 12.7)."""
    return fp8_fake_quant(x, TILE) if layer.simulate and layer.stored != "float" else x


def product(x: mx.array, weight: mx.array) -> mx.array:
    """x W^T, accumulated in float32 and rounded once to x's dtype: x [..., S, in], weight [..., out, in]."""
    if x.shape[-2] == 1 and mx.default_device() == mx.cpu:  # where a row in float32 costs less, W's widening included
        return (norm.wide(x) @ norm.wide(weight).swapaxes(-1, -2)).astype(x.dtype)
    return (x @ weight.swapaxes(-1, -2)).astype(x.dtype)


class Linear(nn.Linear):
    """y = x W^T, accumulated in float32 and rounded once to x's dtype (spec 12.4).

    ``stored`` says how the checkpoint held W: "float", "fp8" or "fp4". Packed weights have their input
    rounded to fp8 in groups of 128 when the published quantisation is simulated.
    """

    def __init__(self, inputs: int, outputs: int, config: ModelArgs):
        super().__init__(inputs, outputs, bias=False)
        self.stored = "float"
        self.simulate = config.quantization_simulation == "published"

    def __call__(self, x: mx.array) -> mx.array:
        """[..., in] -> [..., out]."""
        return product(linear_input(x, self), self.weight)
