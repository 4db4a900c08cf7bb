"""fp8 and fp4: decoding of stored weights, and the simulated roundings of activations. All but the rotation are
exact."""

import torch

from ..cases.strategies import cases
from . import Pair


def scales(random, *shape):
    """E8M0 bytes around 1, as published checkpoints have them."""
    return (
        torch.randint(110, 135, shape, generator=random, dtype=torch.int32).to(torch.uint8).view(torch.float8_e8m0fnu)
    )


def fp8_inputs(case, dtype):
    """Edge tiles are partial: neither side of the matrix is a multiple of 128 but by chance."""
    random = case.random("fp8")
    rows, columns = case.tokens + 120, case.config["hidden_size"] * 8
    codes = torch.randint(0, 256, (rows, columns), generator=random, dtype=torch.int32).to(torch.uint8)
    codes[codes & 0x7F == 0x7F] = 0x7E  # the two NaN codes
    return {
        "weight": codes.view(torch.float8_e4m3fn),
        "e8m0": scales(random, -(-rows // 128), -(-columns // 128)),
        "float": torch.rand(-(-rows // 128), -(-columns // 128), generator=random),
    }


def decode_fp8(side, case, given):
    decode = side.package.quantization.decode_fp8
    weight = side.stored(given["weight"])
    return {name: side.tensor(decode(weight, side.stored(given[name]))) for name in ("e8m0", "float")}


def fp4_inputs(case, dtype):
    random = case.random("fp4")
    rows, groups = case.tokens, case.config["q_lora_rank"]
    packed = torch.randint(-128, 128, (rows, groups * 16), generator=random, dtype=torch.int32).to(torch.int8)
    return {"packed": packed, "scale": scales(random, rows, groups)}


def decode_fp4(side, case, given):
    decode = side.package.quantization.decode_fp4
    return {"values": side.tensor(decode(side.stored(given["packed"]), side.stored(given["scale"])))}


def rounding_inputs(case, dtype):
    """Groups of very different magnitudes, an all-zero group, and values on rounding midpoints."""
    x = case.floats("x", case.batch, case.tokens, 256, dtype=dtype)
    x = x * torch.logspace(-6, 6, 8, base=2, dtype=torch.float64).repeat_interleave(32)
    x[..., :32] = torch.round(x[..., :32] * 4) / 4
    x[:, 0, 32:96] = 0
    return {"x": case.floats("x", 1, 1, 1, dtype=dtype).new_tensor(x.float().to(torch.bfloat16).double().tolist())}


def activation_rounding(side, case, given):
    quantization, x = side.package.quantization, side.array(given["x"])
    return {
        "fp8.64": side.tensor(quantization.fp8_fake_quant(x, 64)),
        "fp8.128": side.tensor(quantization.fp8_fake_quant(x, 128)),
        "fp8.partial": side.tensor(quantization.fp8_fake_quant(x[..., :200], 128)),
        "fp4.32": side.tensor(quantization.fp4_fake_quant(x, 32)),
    }


def rotation(side, case, given):
    return {"y": side.tensor(side.package.quantization.hadamard(side.array(given["x"])))}


PAIRS = (
    Pair(
        name="fp8_weight",
        title="fp8 weights, 128x128 tiles",
        spec="12.1",
        cases=lambda profile: cases(profile, incremental=False),
        inputs=fp8_inputs,
        compute=decode_fp8,
        exact=True,
        dtypes=("float32",),
    ),
    Pair(
        name="fp4_weight",
        title="fp4 weights, two a byte, groups of 32",
        spec="12.3",
        cases=lambda profile: cases(profile, incremental=False),
        inputs=fp4_inputs,
        compute=decode_fp4,
        exact=True,
        dtypes=("float32",),
    ),
    Pair(
        name="fake_quant",
        title="fp8 and fp4 rounding of activations",
        spec="12.2, 12.6",
        cases=lambda profile: cases(profile, incremental=False, most_tokens=12),
        inputs=rounding_inputs,
        compute=activation_rounding,
        exact=True,
    ),
    Pair(
        name="hadamard",
        title="Hadamard rotation of the indexer",
        spec="12.5",
        cases=lambda profile: cases(profile, incremental=False, most_tokens=12),
        inputs=rounding_inputs,
        compute=rotation,
    ),
)
