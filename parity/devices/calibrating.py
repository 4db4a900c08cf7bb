"""The figures of the devices that are asked for: kept ones, or measured now."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import NoDevice
from . import kept, process
from .results import DEVICES, Calibration


def calibration(kind: str, anew: bool = False, tell: Callable[[str], None] = lambda sentence: None) -> Calibration:
    """Of `cpu` or `gpu`; `anew` measures even where figures are kept. Raises NoDevice, BadEnvironment."""
    if not anew:
        found = kept.read(process.identify(kind).device)
        if found is not None:
            return found
    measured = process.measure(kind)
    problem = kept.write(measured)
    if problem:
        tell(f"the figures of the {kind} could not be kept ({problem}); the next run measures again.")
    return measured


def those_here() -> tuple[str, ...]:
    """The kinds of devices that MLX finds on this machine, the CPU first."""
    try:
        process.identify("gpu")
    except NoDevice:
        return DEVICES[:1]
    return DEVICES
