"""Roundings that no correct program can be held to: values within the noise of a rounding midpoint (method, section 9).

Where quantisation is simulated, such a value lands on either side in two correct programs, and the difference is then a whole step. The
sites are the calls of the reference's own rounding functions. Nudged runs move what they read by the measured noise, in random
directions: what changes by more than the noise did, was undecided, and by how much it changes is what it may differ by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from reference_torch import quantization

# The noise of another program is a draw from the same spread as the baseline's, not the same draw: four deviations of it.
NOISE_MARGIN = 4.0
# An undecided value stays where it was in all of n runs with probability 2^-n.
NUDGED_RUNS = 6


@contextmanager
def watched(change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Let `change(site, x)` see, and replace, what every rounding call reads; sites are numbered in the order of the calls."""
    site = 0

    def wrapper(original):
        def call(x, *args):
            nonlocal site
            site += 1
            return original(change(site - 1, x), *args)

        return call

    with (
        mock.patch.object(quantization, "fp8_fake_quant", wrapper(quantization.fp8_fake_quant)),
        mock.patch.object(quantization, "fp4_fake_quant", wrapper(quantization.fp4_fake_quant)),
    ):
        yield


def readings(run: Callable[[], object]) -> tuple[list[Tensor], object]:
    """What every rounding call of `run` read, and the run's result."""
    seen: list[Tensor] = []

    def keep(site: int, x: Tensor) -> Tensor:
        seen.append(x)
        return x

    with watched(keep):
        result = run()
    return seen, result


def noise_levels(exact: list[Tensor], baseline: list[Tensor]) -> list[float]:
    """The noise of each site relative to its rows' size: the median over rows, which a flip upstream does not move."""
    levels = []
    for truth, got in zip(exact, baseline, strict=True):
        size = truth.double().square().mean(-1).sqrt().clamp_min(1e-30)
        off = (got.double() - truth.double()).square().mean(-1).sqrt()
        levels.append(float((off / size).median()) if size.numel() else 0.0)
    return levels


def nudged_runs(run: Callable[[], object], levels: list[float], seed: int) -> list[object]:
    """`run` with every rounding call reading values moved by the noise, NUDGED_RUNS times."""
    results = []
    for index in range(NUDGED_RUNS):
        random = torch.Generator().manual_seed(seed * NUDGED_RUNS + index)

        def nudge(site: int, x: Tensor, random=random) -> Tensor:
            size = x.square().mean(-1, keepdim=True).sqrt() * (levels[site] * NOISE_MARGIN)
            sign = torch.randint(0, 2, x.shape, generator=random) * 2 - 1
            return x + size * sign

        with watched(nudge):
            results.append(run())
    return results
