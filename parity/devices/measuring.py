"""Each primitive on a device of MLX against float64. Runs where the candidate runs: no torch, and MLX imported late."""

from __future__ import annotations

import zlib

import numpy as np

from .primitives import Exact, Primitive, primitives
from .results import BITS, LARGEST, Figure

SMALLEST = -126  # exponent of the smallest normal number, in either type
LONGEST_REASON = 200


def measure(device, seed: int = 0) -> tuple[dict, dict]:
    """Figures and reasons of what is missing, by (primitive, dtype), on an `mx.Device`; a seed draws the inputs."""
    figures, missing = {}, {}
    for primitive in primitives():
        for dtype in primitive.dtypes:
            given = inputs(primitive, dtype, seed)
            try:
                got = on_device(primitive, dtype, given, device)
            except Exception as error:  # a backend without this kernel raises what it likes
                reason = " ".join(str(error).split())[:LONGEST_REASON]
                missing[primitive.name, dtype] = f"{type(error).__name__}: {reason}"
            else:
                figures[primitive.name, dtype] = figure(primitive, dtype, given, got)
    return figures, missing


def inputs(primitive: Primitive, dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Float64 arrays that the type holds exactly; float32 and integers are inputs that stay so in every type."""
    # The draws of one primitive do not depend on which others there are.
    random = np.random.default_rng([seed, zlib.crc32(primitive.name.encode())])
    return primitive.draw(random, lambda x: rounded(x, dtype))


def on_device(primitive: Primitive, dtype: str, given: dict[str, np.ndarray], device) -> np.ndarray:
    """What the device computes, in float64."""
    import mlx.core as mx

    with mx.stream(device):
        arrays = {name: _to_mlx(mx, value, dtype) for name, value in given.items()}
        result = primitive.compute(mx, **arrays).astype(mx.float32)
        mx.eval(result)
    return np.array(result).astype(np.float64)


def figure(primitive: Primitive, dtype: str, given: dict[str, np.ndarray], got: np.ndarray) -> Figure:
    """The error of `got`."""
    with np.errstate(all="ignore"):
        exact, magnitude = primitive.truth(Exact(), **wide(given))
        error = np.abs(np.broadcast_to(got, exact.shape) - exact)
        ulps = error / ulp(exact if magnitude is None else magnitude, dtype)
        told = [np.sqrt(np.mean(ulps**2)), ulps.max(), error.max()]
    return Figure(primitive.unit, primitive.terms, exact.size, *map(_told, told))


def ulp(x: np.ndarray, dtype: str) -> np.ndarray:
    """The distance between neighbouring numbers of the type at |x|; below the normal numbers that of subnormal ones."""
    exponent = np.frexp(x)[1] - 1
    exponent = np.where(x == 0, SMALLEST, np.maximum(exponent, SMALLEST))
    return np.ldexp(1.0, exponent - (BITS[dtype] - 1))


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest numbers of the type, as float64; of two, the even one. Not left to the device that is measured."""
    step = ulp(x, dtype)
    return np.rint(x / step) * step


def _told(x: np.floating) -> float:
    """Six digits, as in every document; finite."""
    return float(f"{x:.6g}") if x < LARGEST else LARGEST  # NaN is below nothing


def wide(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs for a truth: float64 but for integers."""
    return {name: x.astype(np.float64) if x.dtype.kind == "f" else x for name, x in given.items()}


def _to_mlx(mx, x: np.ndarray, dtype: str):
    if x.dtype == np.float64:
        return mx.array(x.astype(np.float32)).astype(getattr(mx, dtype))
    return mx.array(x) if x.dtype in (np.float32, np.uint32) else x
