"""What a device adds to the null: errors of the size that was measured on it (`parity/devices`).

    with on_device(DeviceNoise.of(calibration)):
        ...every run with other rounding in here errs as that device does, too

`OtherRounding` asks how far a function, a sum or a product may be off where it computes one. A primitive adds nothing
while the null's own errors, by the same ruler, are as large: on a CPU that is all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..devices.results import Calibration

# What `OtherRounding` errs by itself, rms in ulps as `parity device` counts them; measured in tests/test_noise.py.
# Those of sums are what 512 and more terms give that are added one after the other (MLX's CPU: 3 to 6), which it does
# at the model's own lengths.
ADDED_UP = 8.0
OWN = {"exp": 12.0, "exp.far": 62.0, "sigmoid": 8.5, "softmax": 13.0, "log1p": 1.0, "rsqrt": 1.4}
OWN |= {"wave": 1.0, "angle": 1.0, "norm": ADDED_UP, "sum": ADDED_UP, "product": ADDED_UP}
# In bfloat16 the one rounding of a result, which every run has.
OWN_BFLOAT16 = 0.5
# A level is the largest figure of these primitives.
PRODUCTS = ("matmul", "matmul.row", "matmul.batched", "matmul.gathered")
SOURCES = {name: (name,) for name in ("exp", "exp.far", "sigmoid", "log1p", "rsqrt", "sum")}
SOURCES |= {
    "softmax": ("softmax", "attention", "attention.row"),
    "wave": ("sin", "cos"),
    "angle": ("rope", "rope.positions", "sin.positions", "cos.positions"),
    "norm": ("rms_norm",),
    "product": (*PRODUCTS, "matmul.quantised", "matmul.quantised.row"),
}
# Functions of one number round once in bfloat16; products with quantised weights are added up in it, on CPUs too.
SOURCES_BFLOAT16 = {"sum": ("sum",), "product": PRODUCTS}
# By function of torch, the levels of its error.
FUNCTIONS = {
    "exp": ("exp",),
    "sigmoid": ("sigmoid",),
    "silu": ("sigmoid",),
    "softplus": ("exp", "log1p"),
    "softmax": ("softmax",),
    "rsqrt": ("rsqrt", "norm"),
    "sqrt": ("rsqrt",),
}
TITLES = {
    "exp": "exp",
    "exp.far": "exp far from 0",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
    "log1p": "log1p",
    "rsqrt": "rsqrt",
    "norm": "rms_norm",
    "wave": "sin and cos",
    "angle": "rope",
    "sum": "sums",
    "product": "matrix products",
}
WAVES = ("cos", "sin")
FAR = 16.0  # where `exp.far` takes over from `exp`
WIDTH = math.sqrt(3)  # of a uniform distribution whose rms is 1


@dataclass(frozen=True, eq=False)  # one object a device
class DeviceNoise:
    """`levels`: by (name in SOURCES, dtype), rms in ulps; only those that the null does not have by itself."""

    levels: Mapping[tuple[str, str], float]

    @classmethod
    def of(cls, calibration: Calibration) -> DeviceNoise:
        """What this device errs by beyond the null."""
        levels = {}
        for dtype, table in (("float32", SOURCES), ("bfloat16", SOURCES_BFLOAT16)):
            for name, sources in table.items():
                figures = [calibration.figures.get((source, dtype)) for source in sources]
                level = max((figure.rms for figure in figures if figure is not None), default=0.0)
                if level > (OWN[name] if dtype == "float32" else OWN_BFLOAT16):
                    levels[name, dtype] = level
        return cls(levels)

    def alone(self) -> dict[str, DeviceNoise]:
        """By the primitives in words, each source of noise without the others."""
        return {
            f"{TITLES[name]} in {dtype} ({value:.3g} ulps)": DeviceNoise({(name, dtype): value})
            for (name, dtype), value in self.levels.items()
        }

    def level(self, name: str, dtype: torch.dtype) -> float:
        """Rms relative to the magnitude that the figure's unit names; 0 for what is not noisy."""
        found = self.levels.get((name, str(dtype).removeprefix("torch.")), 0.0)
        return found * torch.finfo(dtype).eps if found else 0.0

    def of_function(self, name: str, x: Tensor, result: Tensor, seed: int) -> Tensor | None:
        """What to add to a function's result; the same for the same argument, as on a device. None for nothing."""
        if name in WAVES:
            wave, angle = self.level("wave", x.dtype), self.level("angle", x.dtype)
            size = (angle * x.abs().clamp_min(1)).clamp_min(wave) if wave or angle else None
        else:
            size = self._relative(name, x)
            size = None if size is None else size * result.abs()
        if size is None:
            return None
        return size * by_argument(x, seed + sum(name.encode()))

    def _relative(self, name: str, x: Tensor) -> Tensor | float | None:
        names = FUNCTIONS.get(name, ())
        levels = [self.level(one, x.dtype) for one in names]
        far = self.level("exp.far", x.dtype) if "exp" in names else 0.0
        near = math.hypot(*levels)
        if not near and not far:
            return None
        return torch.where(x.abs() > FAR, max(near, far), near) if far else near


_active: list[DeviceNoise] = []


@contextmanager
def on_device(noise: DeviceNoise | None) -> Iterator[None]:
    """Every run with other rounding inside errs as the device does; None changes nothing."""
    if noise is None:
        yield
        return
    _active.append(noise)
    try:
        yield
    finally:
        _active.pop()


def active() -> DeviceNoise | None:
    """Of the innermost device."""
    return _active[-1] if _active else None


def by_argument(x: Tensor, seed: int) -> Tensor:
    """Uniform numbers with an rms of 1 that the bits of x and the seed decide: a function stays a function."""
    bits = x.contiguous().view(torch.int64 if x.dtype == torch.float64 else torch.int32).to(torch.int64)
    mixed = (bits ^ (bits >> 32)) + ((seed + 1) * 0x9E3779B1 & 0xFFFFFFFF)
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        mixed = ((mixed ^ (mixed >> 15)) * factor) & 0xFFFFFFFF
    return ((mixed ^ (mixed >> 16)).to(x.dtype) / 2.0**31 - 1) * WIDTH
