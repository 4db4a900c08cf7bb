"""The primitives that the model is made of: each with inputs, what the device computes of them, and the truth.

A primitive is an entry of `PRIMITIVES` in one of this folder's files. Truths are float64 in numpy and take their exp,
sin, cos, sums and products from `maths`, so that a test can put an error of known size into them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..results import BITS

BOTH = tuple(BITS)
WIDE = ("float32",)


class Exact:
    """The functions that truths are made of, as numpy has them in float64."""

    exp, sin, cos = map(staticmethod, (np.exp, np.sin, np.cos))

    @staticmethod
    def matmul(a, b):
        return a @ b

    @staticmethod
    def sum(x):
        """Over the last axis, which stays."""
        return x.sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class Primitive:
    """`draw(random, to)` makes the inputs by name; `to` rounds an array to the type under test, and what it returns
    reaches the device in that type. `compute(mx, **inputs)` is what the device does. `truth(maths, **inputs)` gives the
    float64 result and the magnitude whose ulps are counted (None: the result's own)."""

    name: str
    draw: Callable
    compute: Callable
    truth: Callable
    unit: str = "result"
    terms: int = 0
    dtypes: tuple[str, ...] = BOTH


def primitives() -> list[Primitive]:
    """All of this folder, file by file."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [one for name in names for one in importlib.import_module(f"{__name__}.{name}").PRIMITIVES]


def of_terms(value: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A sum and its magnitude, given the sum of its terms' squares.

    Sums of one sign err in proportion to the result, others to the spread of their terms."""
    return value, np.maximum(np.abs(value), np.sqrt(squares))
