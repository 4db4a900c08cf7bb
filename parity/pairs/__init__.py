"""The registry of pairs: every module in this folder defines one PAIR, or several as PAIRS.

A pair is one submodule with a strategy that draws its inputs and one function that runs it. The function is written
once: both packages use the same names, so it runs on either side.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st
from torch import Tensor

from ..strategies import Case, Profile


@dataclass(frozen=True)
class Pair:
    """One submodule of the model, on both sides.

    cases(profile) draws a Case; inputs(case, dtype) makes its arrays as float64, exactly representable in dtype;
    compute(side, case, inputs) runs one side and returns its taps by name as torch tensors. `contains` names the
    pairs that this one is built from: it is blamed only where all of them agree. `exact` asks for equality bit by
    bit.
    """

    name: str
    title: str
    spec: str
    cases: Callable[[Profile], st.SearchStrategy[Case]]
    inputs: Callable[[Case, str], dict[str, Tensor]]
    compute: Callable[[object, Case, dict], dict[str, Tensor]]
    contains: tuple[str, ...] = ()
    exact: bool = False
    dtypes: tuple[str, ...] = field(default=("float32", "bfloat16"))


def registry() -> dict[str, Pair]:
    """All pairs by name, every pair after those that it contains."""
    found: dict[str, Pair] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        loaded = importlib.import_module(f"{__name__}.{module}")
        for pair in getattr(loaded, "PAIRS", None) or (loaded.PAIR,):
            found[pair.name] = pair
    ordered: dict[str, Pair] = {}

    def place(pair: Pair) -> None:
        for name in pair.contains:
            if name not in ordered:
                place(found[name])
        ordered.setdefault(pair.name, pair)

    for pair in sorted(found.values(), key=lambda pair: (float(pair.spec.split(",")[0]), pair.name)):
        place(pair)
    return ordered
