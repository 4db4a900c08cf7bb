"""How numbers are kept: rounding to bfloat16, and numbers below the smallest normal one (2^-126), which some devices
replace by 0. Where they are kept the error is that of one rounding; 0 in place of them is wrong by up to 2^23 ulps."""

from __future__ import annotations

import numpy as np

from . import WIDE, Primitive

COUNT = 1 << 14


def _numbers(random, to):
    return {"x": random.standard_normal(COUNT).astype(np.float32)}


def _factors(random, to):
    """Normal numbers whose product is subnormal."""
    x = 2 ** random.uniform(-146, -127, COUNT)
    return {"x": to(x * 2.0**60), "y": to(np.full(COUNT, 2.0**-60))}


def _subnormal(random, to):
    return {"x": to(2 ** random.uniform(-146, -127, COUNT))}


PRIMITIVES = [
    # float32 to bfloat16: the type that the figure is about is that of the result.
    Primitive("cast", _numbers, lambda mx, x: x.astype(mx.bfloat16), lambda maths, x: (x, None), dtypes=("bfloat16",)),
    Primitive(
        "subnormals.product",
        _factors,
        lambda mx, x, y: mx.multiply(x, y),
        lambda maths, x, y: (x * y, None),
        dtypes=WIDE,
    ),
    Primitive(
        "subnormals.argument",
        _subnormal,
        lambda mx, x: mx.multiply(x, 2.0**60),
        lambda maths, x: (x * 2.0**60, None),
        dtypes=WIDE,
    ),
    Primitive(
        "subnormals.exp",
        lambda random, to: {"x": to(random.uniform(-102, -88, COUNT))},
        lambda mx, x: mx.exp(x),
        lambda maths, x: (maths.exp(x), None),
        dtypes=WIDE,
    ),
]
