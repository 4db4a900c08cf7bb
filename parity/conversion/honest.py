"""What a conversion may do to a matrix: round it, honestly, to the format in which it is stored.

An honest rounding is made anew from the original's values, twice: as MLX makes it, and on a grid that lies otherwise.
What a conversion did is held to these, group by group, so that one wrong scale among a million shows.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4_checkpoints import Format
from dsv4_mlx.quantization import encode_fp4, encode_fp8
from reference_torch.quantization import decode_fp4, decode_fp8

MANTISSA = {"fp4": 1, "mxfp4": 1, "nvfp4": 1, "fp8": 3, "mxfp8": 3, "BF16": 7, "F16": 10, "F32": 23, "F64": 52}
TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
MLX = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
GROUP = {"fp4": 32, "fp8": 128}
PLAIN_GROUP = 32  # of a plain matrix, which has none
ELSEWHERE = 1.37  # no power of two: a grid of floating-point numbers lies otherwise after a division by it


def honest(values: Tensor, stored: Format, dtype: str) -> Tensor:
    """Float32 values [R, C] or [C] rounded to a format as MLX rounds; `dtype` is the type of plain numbers, else that
    of the scales."""
    if stored.kind == "float":
        return values.to(TORCH[dtype]).float()
    given = mx.array(values.numpy())
    if stored.kind == "fp8":
        codes, scale = encode_fp8(given)
        return decode_fp8(_torch(codes).view(torch.float8_e4m3fn), _torch(scale))
    if stored.kind == "fp4":
        codes, scale = encode_fp4(given)
        return decode_fp4(_torch(codes), _torch(scale))
    kept = given.astype(MLX.get(dtype, mx.float32)) if stored.kind == "affine" else given
    packed = mx.quantize(kept, stored.group, stored.bits, mode=stored.kind)
    wide = [packed[0], *(part.astype(mx.float32) if stored.kind == "affine" else part for part in packed[1:])]
    return _torch(mx.dequantize(*wide, group_size=stored.group, bits=stored.bits, mode=stored.kind).astype(mx.float32))


def moved(values: Tensor, rounded: Tensor, stored: Format, dtype: str) -> Tensor:
    """The same on a grid that lies otherwise; where the values lie on the grid already, themselves."""
    if torch.equal(values, rounded):
        return rounded
    if stored.kind != "affine":
        return honest(values * ELSEWHERE, stored, dtype) / ELSEWHERE
    groups = values.unflatten(-1, (-1, stored.group))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    low, high = low - _step(groups, stored.bits) / 4, high + _step(groups, stored.bits) / 4
    step = ((high - low) / (2**stored.bits - 1)).clamp(min=torch.finfo(torch.float32).tiny)
    return (((groups - low) / step).round() * step + low).flatten(-2)


def in_groups(values: Tensor, stored: Format) -> Tensor:
    """[R, C] or [C] -> [groups, elements of a group]: those of a row that share a scale; of a vector, one by one."""
    if values.ndim == 1:
        return values[:, None]
    size = stored.group or GROUP.get(stored.kind, PLAIN_GROUP)
    return F.pad(values, (0, -values.shape[-1] % size)).reshape(-1, size)


def floor(groups: Tensor, stored: Format, dtype: str) -> Tensor:
    """[groups]: the RMS error of rounding values that lie anywhere between two steps. A group that honest rounding
    happens to leave as it is may still be rounded by another program."""
    if stored.kind == "affine":
        return _step(groups, stored.bits)[:, 0] / 12**0.5
    kind = dtype if stored.kind == "float" else stored.kind
    return groups.square().mean(-1).sqrt() * 2.0 ** -MANTISSA[kind] / 12**0.5


def _step(groups: Tensor, bits: int) -> Tensor:
    return (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / (2**bits - 1)


def _torch(x: mx.array) -> Tensor:
    return torch.from_numpy(np.array(x))
