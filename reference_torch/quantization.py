"""fp8 and fp4: decoding stored weights, and the roundings of activations that the released program simulates (spec
12)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv4_checkpoints import Format

from .config import Config, Options
from .norm import wide

E4M3_MAX = 448.0
E2M1_MAX = 6.0
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def decode_scale(scale: Tensor) -> Tensor:
    """A stored scale as float32: E8M0 bytes are 2^(byte-127), 255 is NaN; float scales are themselves (spec 12.1)."""
    if scale.dtype in (torch.float8_e8m0fnu, torch.uint8):
        byte = scale.view(torch.uint8).to(torch.int32)
        return torch.where(byte == 255, torch.nan, torch.ldexp(torch.ones(byte.shape), byte - 127))
    return scale.float()


def decode_fp8(weight: Tensor, scale: Tensor, block: int = 128) -> Tensor:
    """W = f32(q) * scale of its 128x128 tile; edge tiles may be partial (spec 12.1).

    weight [out, in] float8_e4m3fn, scale [ceil(out/128), ceil(in/128)] -> [out, in] float32.
    """
    rows, columns = weight.shape
    tiles = decode_scale(scale).repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
    return weight.float() * tiles


def decode_fp4(packed: Tensor, scale: Tensor, group: int = 32, out: Tensor | None = None) -> Tensor:
    """Two e2m1 codes a byte, the low nibble first, one scale for 32 elements of a row (spec 12.3).

    packed [out, in/2] int8, scale [out, in/32] -> [out, in] float32, in the memory of ``out`` if it is given: that of a
    published matrix, 33 MB, costs more to get from the system than to fill.
    """
    pairs = e2m1(torch.stack((torch.arange(256) & 15, torch.arange(256) >> 4), -1))  # both values of every byte
    # A pair is looked up as one element of eight bytes: a published layer has three billion of them.
    value = torch.empty(len(packed), 2 * packed.shape[-1]) if out is None else out
    index = packed.view(torch.uint8).flatten().int()
    torch.index_select(pairs.view(torch.float64)[:, 0], 0, index, out=value.view(torch.float64).flatten())
    return _scaled(value, decode_scale(scale), group)


def _scaled(value: Tensor, scale: Tensor, group: int) -> Tensor:
    """Rows [out, in] times the scale of each group of columns, in place; the last group may be a part."""
    if value.shape[-1] % group:
        return value.mul_(scale.repeat_interleave(group, -1)[:, : value.shape[-1]])
    value.unflatten(-1, (-1, group)).mul_(scale[..., None])
    return value


def decode(parts: dict[str, Tensor], stored: Format, out: Tensor | None = None) -> Tensor:
    """The values of matrices [..., out, in] from their tensors weight, scale or scales, biases: float32, where that is
    supported in the memory of ``out``."""
    if stored.kind == "fp8":
        return decode_fp8(parts["weight"].view(torch.float8_e4m3fn), parts["scale"])
    if stored.kind == "fp4":
        return decode_fp4(parts["weight"], parts["scale"], out=out)
    return decode_mlx(parts["weight"], parts["scales"], parts.get("biases"), stored)


def decode_mlx(weight: Tensor, scales: Tensor, biases: Tensor | None, stored: Format) -> Tensor:
    """MLX's quantised matrices: uint32 words [..., out, in * bits / 32], a scale for each group of a row.

    affine: code * scale + bias; mxfp4, mxfp8: e2m1 and e4m3 with E8M0 scales; nvfp4: e2m1 with e4m3 scales.
    """
    if stored.kind == "mxfp8":
        values = weight.view(torch.float8_e4m3fn).float()
    else:
        codes = unpack(weight, stored.bits)
        values = codes.float() if stored.kind == "affine" else e2m1(codes)
    if stored.kind == "nvfp4":
        scales = scales.view(torch.float8_e4m3fn)
    elif stored.kind != "affine":
        scales = scales.view(torch.float8_e8m0fnu)
    values = values.unflatten(-1, (-1, stored.group)) * decode_scale(scales)[..., None]
    if biases is not None:
        values = values + biases.float()[..., None]
    return values.flatten(-2)


def unpack(words: Tensor, bits: int) -> Tensor:
    """The codes of `bits` bits each that lie in words [..., W] as one stream, lowest bits first: [..., 32 W / bits]."""
    together = bits // math.gcd(bits, 8)  # bytes that hold a whole number of codes
    stream = words.contiguous().view(torch.uint8).unflatten(-1, (-1, together)).to(torch.int64)
    number = sum(stream[..., i] << 8 * i for i in range(together))
    codes = [(number >> bits * i) & (2**bits - 1) for i in range(8 * together // bits)]
    return torch.stack(codes, dim=-1).flatten(-2)


def e2m1(code: Tensor) -> Tensor:
    """The values of 4-bit codes, bit 3 the sign (spec 12.3)."""
    magnitude = torch.tensor(FP4_VALUES)[code & 7]
    return torch.where(code & 8 > 0, -magnitude, magnitude)


def round_to_e4m3(x: Tensor) -> Tensor:
    """The nearest e4m3 value, ties to even: 3 mantissa bits, exponents -6 .. 8, clamped at 448. Exact in any float
    type."""
    return _round_to_float(x.clamp(-E4M3_MAX, E4M3_MAX), mantissa_bits=3, smallest_exponent=-6)


def round_to_e2m1(x: Tensor) -> Tensor:
    """The nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 with its sign, ties to even (spec 12.6). Exact in any float type."""
    return _round_to_float(x.clamp(-E2M1_MAX, E2M1_MAX), mantissa_bits=1, smallest_exponent=0)


def _round_to_float(x: Tensor, mantissa_bits: int, smallest_exponent: int) -> Tensor:
    exponent = torch.frexp(x)[1] - 1  # |x| = m * 2^exponent with 1 <= m < 2
    step = torch.ldexp(torch.ones_like(x), exponent.clamp_min(smallest_exponent) - mantissa_bits)
    return torch.round(x / step) * step


def power_of_two_at_least(x: Tensor) -> Tensor:
    """2^ceil(log2 x) for positive x, exactly."""
    mantissa, exponent = torch.frexp(x)  # x = mantissa * 2^exponent with 1/2 <= mantissa < 1
    return torch.ldexp(torch.ones_like(x), torch.where(mantissa == 0.5, exponent - 1, exponent))


def fp8_scale(amax: Tensor) -> Tensor:
    """The power of two that brings a group's largest magnitude into e4m3's range; in float32 as published (spec
    12.2)."""
    return power_of_two_at_least(amax.float().clamp_min(1e-4) * torch.tensor(1 / E4M3_MAX))


def fp4_scale(amax: Tensor) -> Tensor:
    """The power of two that brings a group's largest magnitude into e2m1's range; in float32 as published (spec
    12.6)."""
    return power_of_two_at_least(amax.float().clamp_min(E2M1_MAX * 2.0**-126) / E2M1_MAX)


def fp8_fake_quant(x: Tensor, group: int) -> Tensor:
    """Round to e4m3 times a power-of-two scale for each group along the last axis (spec 12.2). [..., K] -> [..., K].

    The last group may be partial.
    """
    return _fake_quant(x, group, fp8_scale, round_to_e4m3)


def fp4_fake_quant(x: Tensor, group: int = 32) -> Tensor:
    """Round to e2m1 times a power-of-two scale for each group along the last axis (spec 12.6). [..., K] -> [..., K]."""
    return _fake_quant(x, group, fp4_scale, round_to_e2m1)


def _fake_quant(x: Tensor, group: int, scale_of, rounded) -> Tensor:
    width = x.shape[-1]
    t = F.pad(wide(x), (0, -width % group)).unflatten(-1, (-1, group))
    scale = scale_of(t.abs().amax(-1, keepdim=True)).to(t.dtype)
    return (rounded(t / scale) * scale).flatten(-2)[..., :width].to(x.dtype)


def hadamard(x: Tensor) -> Tensor:
    """x H / sqrt(K) with H the Sylvester matrix in natural order (spec 12.5). [..., K] -> [..., K], K a power of
    two."""
    width = x.shape[-1]
    if width & (width - 1):
        raise ValueError(f"a Hadamard rotation needs a power of two; this tensor has {width} channels.")
    t = wide(x)
    matrix = torch.ones(1, 1, dtype=t.dtype)
    while matrix.shape[0] < width:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return (torch.matmul(t, matrix) / math.sqrt(width)).to(x.dtype)


class KVQuant(nn.Module):
    """Rounding of a key-value row as the cache stores it: fp8 in groups of 64, rope channels excluded (spec 6.3)."""

    def __init__(self, config: Config, options: Options):
        super().__init__()
        self.active = options.quantization_simulation != "none"
        self.rope_dim = config.qk_rope_head_dim

    def forward(self, row: Tensor) -> Tensor:
        if not self.active:
            return row
        content, rope = row[..., : -self.rope_dim], row[..., -self.rope_dim :]
        return torch.cat((fp8_fake_quant(content, 64), rope), dim=-1)


class IndexQuant(nn.Module):
    """Rotation and rounding of the indexer's queries and keys: Hadamard, then fp4 in groups of 32 (spec 9)."""

    def __init__(self, options: Options):
        super().__init__()
        self.active = options.quantization_simulation != "none"

    def forward(self, x: Tensor) -> Tensor:
        return fp4_fake_quant(hadamard(x), 32) if self.active else x


class Linear(nn.Module):
    """y = x W^T without bias: products accumulate wide, the result is rounded once to x.dtype (spec 2, 12.4).

    `stored` says how the checkpoint held the weight. Under the published simulation the input of an fp8 or fp4 matrix
    is rounded to fp8 in groups of 128 first.
    """

    def __init__(self, inputs: int, outputs: int, options: Options):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.simulate = options.quantization_simulation == "published"
        self.stored = "float"

    def forward(self, x: Tensor) -> Tensor:
        if self.simulate and self.stored != "float":
            x = fp8_fake_quant(x, 128)
        return F.linear(wide(x), wide(self.weight)).to(x.dtype)
