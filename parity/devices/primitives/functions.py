"""Functions of one number, over the arguments that the model has."""

from __future__ import annotations

import numpy as np

from . import BOTH, WIDE, Exact, Primitive

COUNT = 1 << 14
FARTHEST = 32768  # position of a sine's argument
CHANNELS, BASE = 64, 10000.0  # of rope


def _between(low: float, high: float):
    return lambda random, to: {"x": to(random.uniform(low, high, COUNT))}


def _powers(low: float, high: float):
    """Powers of ten with exponents between these."""
    return lambda random, to: {"x": to(10 ** random.uniform(low, high, COUNT))}


def _angles(random, to):
    """Positions up to FARTHEST times the frequencies of rope, which are 1 and less."""
    frequencies = BASE ** (-2 * random.integers(CHANNELS // 2, size=COUNT) / CHANNELS)
    return {"x": to(random.integers(FARTHEST + 1, size=COUNT) * frequencies)}


def _sigmoid(maths: Exact, x):
    """The form without cancellation on either side."""
    small = maths.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small), None


def _entry(name: str, draw, truth, dtypes=WIDE, unit="result") -> Primitive:
    function = name.partition(".")[0]
    return Primitive(name, draw, lambda mx, x: getattr(mx, function)(x), truth, unit, dtypes=dtypes)


def _wave(name: str, draw, unit: str = "amplitude") -> Primitive:
    """Of amplitude 1: what it multiplies is turned, so an error next to a zero weighs no more than elsewhere."""
    function = name.partition(".")[0]

    def truth(maths, x):
        return getattr(maths, function)(x), np.maximum(1, np.abs(x)) if unit == "angle" else np.ones_like(x)

    return _entry(name, draw, truth, unit=unit)


PRIMITIVES = [
    _entry("exp", _between(-16, 16), lambda maths, x: (maths.exp(x), None), BOTH),
    _entry("exp.far", _between(-87, -16), lambda maths, x: (maths.exp(x), None), BOTH),
    _entry("sigmoid", _between(-16, 16), _sigmoid, BOTH),
    _entry("log1p", _powers(-7, 2), lambda maths, x: (np.log1p(x), None)),
    _entry("rsqrt", _powers(-8, 8), lambda maths, x: (x**-0.5, None)),
    _wave("sin", _between(-np.pi, np.pi)),
    _wave("cos", _between(-np.pi, np.pi)),
    _wave("sin.positions", _angles, "angle"),
    _wave("cos.positions", _angles, "angle"),
]
