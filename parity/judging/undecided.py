"""Roundings that no correct program can be held to: values within the noise of a rounding midpoint (method, section 9).

Where quantisation is simulated, such a value lands on either side in two correct programs, and the difference is then
a whole step. The sites are the calls of the reference's own rounding functions. Nudged runs move what they read by
the measured noise, in random directions: what changes by more than the noise did, was undecided, and by how much it
changes is what it may differ by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from reference_torch import quantization

# The noise of another program is another draw from the spread that the baseline's comes from; four times its size
# covers both tails.
NOISE_MARGIN = 4.0
# Runs come in pairs that move every value in opposite directions, so that each undecided value falls over in one of
# the two.
NUDGED_PAIRS = 3
# A row is behind a flipped rounding where some run is this many times noisier than the typical row: rounding noise of
# one tensor varies tenfold between rows, one step of fp8 is ten thousand times float32's noise.
FLIP = 30.0
# Nudged runs flip some of the undecided roundings; another program may flip others, or more of them.
FLIP_MARGIN = 3.0


def decided_rows(exact: Tensor, baseline: Tensor, others: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Which rows of a tensor [B, S, ...] no undecided rounding reaches, and each row's largest error in any run.

    `others` are the runs with other rounding and the nudged ones. -> bool [B, S], float [B, S].
    """
    exact = exact.double()
    noise = torch.stack([largest_by_row(run.double() - exact) for run in (baseline, *others)])
    there = largest_by_row(exact) > 0  # hidden scores are 0 in every run and say nothing about the typical row
    usual = noise[0][there].median() if there.any() else noise.new_zeros(())
    return noise.amax(0) <= FLIP * usual, noise.amax(0)


def largest_by_row(x: Tensor) -> Tensor:
    """[B, S, ...] -> the largest magnitude of each token or compressed row [B, S]."""
    return x.abs().flatten(2).amax(-1)


@contextmanager
def watched(change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let `change` see, and replace, what every rounding call reads."""

    def wrapper(original):
        def call(x, *args):
            return original(change(x), *args)

        return call

    with (
        mock.patch.object(quantization, "fp8_fake_quant", wrapper(quantization.fp8_fake_quant)),
        mock.patch.object(quantization, "fp4_fake_quant", wrapper(quantization.fp4_fake_quant)),
    ):
        yield


def readings(run: Callable[[], object]) -> tuple[list[Tensor], object]:
    """What every rounding call of `run` read, in the order of the calls, and the run's result."""
    seen: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    with watched(keep):
        result = run()
    return seen, result


def noise_level(exact: list[Tensor], baseline: list[Tensor]) -> float:
    """The largest noise in a row that a site reads, relative to the row's size: the noisiest site's median row.

    The median, because flips upstream move some rows by more than noise.
    """
    levels = [0.0]
    for truth, got in zip(exact, baseline, strict=True):
        size = truth.double().square().mean(-1).sqrt().clamp_min(1e-30)
        off = (got.double() - truth.double()).abs().amax(-1)
        levels.append(float((off / size).median()) if size.numel() else 0.0)
    return max(levels)


def nudged_runs(run: Callable[[], object], level: float, seed: int) -> list[object]:
    """`run` with every rounding call reading values moved by the noise: NUDGED_PAIRS pairs of runs in opposite
    directions."""
    size = lambda x: x.square().mean(-1, keepdim=True).sqrt() * (level * NOISE_MARGIN)  # noqa: E731
    return [_nudged(run, size, seed * NUDGED_PAIRS + pair, way)[1] for pair in range(NUDGED_PAIRS) for way in (1, -1)]


def cascading_runs(run: Callable[[], object], exact: list[Tensor], level: float, seed: int) -> list[object]:
    """`nudged_runs`, and as many runs again in which each row moves by as much as flips upstream moved it in the
    first ones.

    Where roundings follow each other, one flip shifts what the next one reads by far more than noise, in a direction
    of its own.
    """
    size = lambda x: x.square().mean(-1, keepdim=True).sqrt() * (level * NOISE_MARGIN)  # noqa: E731
    pairs = [(pair, way) for pair in range(NUDGED_PAIRS) for way in (1, -1)]
    first = [_nudged(run, size, seed * NUDGED_PAIRS + pair, way) for pair, way in pairs]
    moved = [
        torch.stack([(seen[site] - truth).abs().amax(-1, keepdim=True) for seen, _ in first]).amax(0)
        for site, truth in enumerate(exact)
    ]
    again = []
    for pair, way in pairs:
        sites = iter(moved)
        again.append(_nudged(run, lambda x, sites=sites: next(sites) + size(x), (seed + 1) * NUDGED_PAIRS + pair, way))
    return [result for _, result in first + again]


def _nudged(
    run: Callable[[], object], size: Callable[[Tensor], Tensor], seed: int, way: int
) -> tuple[list[Tensor], object]:
    """One run with what each rounding call reads moved by size(x) up or down; also what the calls were given."""
    random = torch.Generator().manual_seed(seed)
    seen: list[Tensor] = []

    def nudge(x: Tensor) -> Tensor:
        seen.append(x)
        return x + size(x) * way * (torch.randint(0, 2, x.shape, generator=random) * 2 - 1)

    with watched(nudge):
        result = run()
    return seen, result
