"""Packed weights, the published program's rounding of activations, linear layers (spec 12)."""

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from dsv4_checkpoints import Format

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


def encode_fp8(values: mx.array) -> tuple[mx.array, mx.array]:
    """float32 [out, in] -> e4m3 bytes [out, in] and E8M0 bytes a 128x128 tile: each tile's largest is at most 448."""
    rows, cols = values.shape
    tiles = mx.pad(values, [(0, -rows % TILE), (0, -cols % TILE)])
    tiles = tiles.reshape(-(-rows // TILE), TILE, -(-cols // TILE), TILE)
    scale = power_of_two_above(mx.maximum(mx.abs(tiles).max(axis=(1, 3)), 1e-4) * (1 / FP8_MAX))
    codes = mx.to_fp8(tiles / scale[:, None, :, None])
    return codes.reshape(tiles.shape[0] * TILE, -1)[:rows, :cols], _exponent_byte(scale)


def encode_fp4(values: mx.array) -> tuple[mx.array, mx.array]:
    """float32 [out, in] -> e2m1 codes, two a byte [out, in/2] int8, and E8M0 bytes a group of 32 [out, in/32]."""
    groups = _in_groups(values, FP4_GROUP)
    scale = power_of_two_above(mx.maximum(mx.abs(groups).max(axis=-1), FP4_MAX * 2.0**-126) / FP4_MAX)
    rounded = round_fp4(groups / scale[..., None]).flatten(-2)[:, : values.shape[-1]]
    size = mx.abs(rounded)  # steps of 1/2, then 1, then 2: its place among FP4_VALUES
    place = mx.where(size < 2, 2 * size, mx.where(size < 4, size + 2, size / 2 + 4)).astype(mx.uint8)
    codes = place | mx.where(rounded < 0, 8, 0).astype(mx.uint8)
    return (codes[:, 0::2] | (codes[:, 1::2] << 4)).view(mx.int8), _exponent_byte(scale)


def _exponent_byte(scale: mx.array) -> mx.array:
    """Powers of two -> E8M0 bytes."""
    return (scale.view(mx.uint32) >> 23).astype(mx.uint8)


def decode_mlx(parts: dict[str, mx.array], stored: Format) -> mx.array:
    """MLX's packed matrices -> float32. Its own decoder rounds mxfp4 and its kin to bfloat16, which holds them."""
    scales, biases = parts["scales"], parts.get("biases")
    if biases is not None:
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    found = mx.dequantize(parts["weight"], scales, biases, stored.group, stored.bits, mode=stored.kind)
    return found.astype(mx.float32)


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
        self.simulate = config.quantization_simulation != "none"
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
        self.simulate = config.quantization_simulation != "none"

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


def pack(model: nn.Module, formats: Mapping[str, Format]):
    """Make the layers of these module paths ready for packed weights, which are loaded later; those that are, stay."""

    def settings(path: str, layer: nn.Module) -> dict | bool:
        found = formats.get(path) if "scales" not in layer else None
        return found is not None and {"group_size": found.group, "bits": found.bits, "mode": found.kind}

    nn.quantize(model, class_predicate=settings)


def quantized_product(x: mx.array, layer: nn.Module) -> mx.array:
    """x W^T of a layer that holds W packed, accumulated in float32 and rounded once to x's dtype."""
    y = mx.quantized_matmul(
        quantized_input(x),
        layer.weight,
        layer.scales,
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )
    return y.astype(x.dtype)


def quantized_input(x: mx.array) -> mx.array:
    """On the CPU MLX accumulates packed products in their input's type: off by 1 % in bfloat16."""
    return norm.wide(x) if mx.default_device() == mx.cpu else x


def packed_like(layer: nn.Module, quantized: nn.Module):
    """Give ``quantized`` the weight of ``layer``, packed, and its other attributes."""
    settings = {"group_size": quantized.group_size, "bits": quantized.bits, "mode": quantized.mode}
    quantized.weight, quantized.scales, *biases = mx.quantize(layer.weight, **settings)
    quantized.biases = biases[0] if biases else None
    quantized.stored = layer.stored
    quantized.simulate = layer.simulate
    return quantized


class Linear(nn.Linear):
    """y = x W^T, accumulated in float32 and rounded once to x's dtype (spec 12.4).

    ``stored`` says how the checkpoint held W: "float", "fp8" or "fp4". Weights that it packed have their input
    rounded to fp8 in groups of 128 when the published quantisation is simulated.
    """

    def __init__(self, inputs: int, outputs: int, config: ModelArgs):
        super().__init__(inputs, outputs, bias=False)
        self.stored = "float"
        self.simulate = config.quantization_simulation == "published"

    def __call__(self, x: mx.array) -> mx.array:
        """[..., in] -> [..., out]."""
        return product(linear_input(x, self), self.weight)

    def to_quantized(self, group_size: int | None = None, bits: int | None = None, mode: str = "affine"):
        """The same layer with its weight packed, as ``mlx.nn.quantize`` asks for it."""
        outputs, inputs = self.weight.shape
        return packed_like(self, QuantizedLinear(inputs, outputs, False, group_size, bits, mode))


class QuantizedLinear(nn.QuantizedLinear):
    """``Linear`` with W packed in one of MLX's formats."""

    def __call__(self, x: mx.array) -> mx.array:
        """[..., in] -> [..., out]."""
        return quantized_product(linear_input(x, self), self)


class Embedding(nn.Embedding):
    """Rows by token id: weight [V, D]."""

    def __init__(self, config: ModelArgs):
        super().__init__(config.vocab_size, config.hidden_size)
        self.stored, self.simulate = "float", False
        self.type = getattr(mx, config.torch_dtype)

    def to_quantized(self, group_size: int | None = None, bits: int | None = None, mode: str = "affine"):
        """The same table packed, as ``mlx.nn.quantize`` asks for it."""
        rows, width = self.weight.shape
        quantized = packed_like(self, QuantizedEmbedding(rows, width, group_size, bits, mode))
        quantized.type = self.type
        return quantized


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """``Embedding`` packed; ``type`` is that of the rows it gives."""

    def __call__(self, ids: mx.array) -> mx.array:
        """[...] -> [..., D]."""
        parts = {leaf: self[leaf][ids] for leaf in ("weight", "scales", "biases") if self.get(leaf) is not None}
        return decode_mlx(parts, Format(self.mode, self.bits, self.group_size)).astype(self.type)
