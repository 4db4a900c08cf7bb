"""The registry of pairs: every module in this folder defines one PAIR, or several as PAIRS.

A pair is one submodule with a strategy that draws its inputs and one function that runs it. The function is written
once: both packages use the same names, so it runs on either side. What has no tensors of its own, the caches, is a pair
of lives.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st
from torch import Tensor

from ..cases.strategies import Case, Profile


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of `parity run`. `contains` names the pairs that it is built from: it is blamed only where all agree."""

    name: str
    title: str
    spec: str
    contains: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Pair(Row):
    """One submodule of the model, on both sides.

    cases(profile) draws a Case; inputs(case, dtype) makes its arrays as float64, exactly representable in dtype;
    compute(side, case, inputs) runs one side and returns its taps by name as torch tensors. `exact` asks for equality
    bit by bit.
    """

    cases: Callable[[Profile], st.SearchStrategy[Case]]
    inputs: Callable[[Case, str], dict[str, Tensor]]
    compute: Callable[[object, Case, dict], dict[str, Tensor]]
    exact: bool = False


@dataclass(frozen=True, kw_only=True)
class LifePair(Row):
    """Whatever is done to the caches of a whole model: its verdict comes from lives rather than from tensors.

    The candidate's logits are held to one exact call of the reference over the same tokens, without any state; in
    float32 alone, in which a lost token cannot pass for rounding. A profile's lives are spread over the configs.
    """

    configs: tuple[dict, ...]
    dtypes: tuple[str, ...] = ("float32",)


def registry() -> dict[str, Row]:
    """All pairs by name, every pair after those that it contains."""
    found: dict[str, Row] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        loaded = importlib.import_module(f"{__name__}.{module}")
        for pair in getattr(loaded, "PAIRS", None) or (loaded.PAIR,):
            found[pair.name] = pair
    ordered: dict[str, Row] = {}

    def place(pair: Row) -> None:
        for name in pair.contains:
            if name not in ordered:
                place(found[name])
        ordered.setdefault(pair.name, pair)

    for pair in sorted(found.values(), key=lambda pair: (float(pair.spec.split(",")[0]), pair.name)):
        place(pair)
    return ordered
