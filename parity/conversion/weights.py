"""The tensors of two folders side by side, each read once: the original's, the conversion's, and what honest rounding
makes of the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4_checkpoints import FLOAT, Format
from reference_torch.checkpoint import parameter

from ..streamed.source import Cached, Source
from .honest import floor, honest, in_groups, moved

# A group of values may be off by twice what honest rounding leaves: two ways of rounding differ by a quarter to a half
# (docs/conversions.md), a wrong scale by 3 times and more.
LIMIT = 2.0
DEVIATIONS = 6.0  # of the scatter of a mean over a matrix


@dataclass
class Compared:
    """One tensor of a conversion, measured against its original; sums are over its elements, so that a large tensor
    may come in parts.

    beyond: the worst group's error over what LIMIT times honest rounding leaves; groups: how many there are, wrong:
    how many lie beyond. signal, noise, honest_noise, least: sums of squares of the original, of the conversion's
    error, of honest rounding's, of the error by which a value between two steps is rounded. dot, honest_dot: original
    times conversion, times honest rounding.
    """

    name: str
    stored: str
    matrix: bool = True
    elements: int = 0
    signal: float = 0.0
    dot: float = 0.0
    honest_dot: float = 0.0
    noise: float = 0.0
    honest_noise: float = 0.0
    least: float = 0.0
    groups: int = 0
    wrong: int = 0
    beyond: float = 0.0
    sentence: str = ""

    @property
    def gain(self) -> float:
        """The least-squares factor from the original's values to the conversion's."""
        return self.dot / self.signal if self.signal > 0 else 1.0

    @property
    def gain_beyond(self) -> float:
        """The gain's distance from 1, or from honest rounding's gain, over its limit: steps that are the means of what
        falls on them shrink values by their share of noise."""
        if not self.matrix or self.signal == 0:
            return 0.0
        share = max(self.honest_noise, self.least) / self.signal
        off = min(abs(self.gain - 1), abs(self.dot - self.honest_dot) / self.signal)
        return off / (LIMIT * share + DEVIATIONS * math.sqrt(share / self.elements))

    @property
    def ratio(self) -> float:
        """Above 1, rounding does not explain the tensor."""
        return max(self.beyond, self.gain_beyond)

    def add(self, part: Compared) -> None:
        """Further rows of the same tensor."""
        for name in ("elements", "signal", "dot", "honest_dot", "noise", "honest_noise", "least", "groups", "wrong"):
            setattr(self, name, getattr(self, name) + getattr(part, name))
        self.beyond = max(self.beyond, part.beyond)
        self.sentence = self.sentence or part.sentence


@dataclass
class Taken:
    """Float32 values of a tensor, or of `rows` of it: as the original has it, as the conversion has it, honestly
    rounded in two ways. worst: the number of the worst group."""

    original: Tensor
    converted: Tensor
    rounded: tuple[Tensor, Tensor]
    compared: Compared
    worst: int = 0
    first_row: int = 0


class Weights:
    """Both folders, and what was compared so far, by published name. `name_it` says of a tensor that rounding does not
    explain what is wrong with it."""

    def __init__(self, original: Source, conversion: Source, name_it: Callable[[Weights, Taken], str]):
        self.original, self.conversion, self.name_it = original, conversion, name_it
        self.found: dict[str, Compared] = {}

    def take(self, name: str) -> Taken:
        """The values of a published name. Raises CheckpointError."""
        want, got = (parameter(one.reading, name, one, torch.float32) for one in (self.original, self.conversion))
        return self._taken(name, want, got)

    def take_rows(self, name: str, count: int) -> Iterator[Taken]:
        """The values of a matrix that lies in one piece, so many rows at a time. Raises CheckpointError."""
        sources = [(one, Cached(one)) for one in (self.original, self.conversion)]
        for start in range(0, self.original.reading.slots[name].shape[0], count):
            rows = slice(start, start + count)
            want, got = (parameter(one.reading, name, table, torch.float32, rows) for one, table in sources)
            yield self._taken(name, want, got, start)

    def _taken(self, name: str, want: Tensor, got: Tensor, first_row: int = 0) -> Taken:
        if not want.is_floating_point():
            taken = Taken(want, got, (want, want), *_same(name, want, got))
        else:
            stored, dtype = self.format(name)
            rounded = honest(want, stored, dtype)
            compared, worst = _compare(name, want, got, rounded, stored, dtype)
            taken = Taken(want, got, (rounded, moved(want, rounded, stored, dtype)), compared, worst, first_row)
        if taken.compared.ratio > 1:
            taken.compared.sentence = self.name_it(self, taken)
        if first_row:
            self.found[name].add(taken.compared)
        else:
            self.found[name] = taken.compared
        return taken

    def format(self, name: str) -> tuple[Format, str]:
        """How the conversion stores a tensor, and in which type its plain numbers or scales are."""
        reading = self.conversion.reading
        place = reading.places[name][0]
        stored = reading.formats[place.name] if reading.slots[name].is_matrix else FLOAT
        parts = reading.parts(place)
        values = parts.get("scales", parts.get("scale")) if stored.kind != "float" else parts[place.leaf]
        return stored, self.conversion.stored[values].dtype


def _compare(name: str, want: Tensor, got: Tensor, rounded: Tensor, stored: Format, dtype: str) -> tuple[Compared, int]:
    """One tensor's values against the original's and what honest rounding makes of those; the number of its worst
    group."""
    groups = lambda x: in_groups(x, stored)  # noqa: E731
    error, honestly = (groups(x - want).double().square().mean(-1).sqrt() for x in (got, rounded))
    least = floor(groups(want), stored, dtype).double()
    beyond = torch.where(error > 0, error / (LIMIT * torch.maximum(honestly, least)), 0.0)
    signal, dot, honest_dot, noise, honest_noise = (
        float((x.double() * y.double()).sum())
        for x, y in (
            (want, want),
            (want, got),
            (want, rounded),
            (got - want, got - want),
            (rounded - want, rounded - want),
        )
    )
    compared = Compared(
        name,
        str(stored) if stored.kind != "float" else dtype.lower(),
        want.ndim > 1,
        want.numel(),
        signal,
        dot,
        honest_dot,
        noise,
        honest_noise,
        float(least.square().sum()) * groups(want).shape[-1],
        len(beyond),
        int((beyond > 1).sum()),
        float(beyond.max()),
    )
    return compared, int(beyond.argmax())


def _same(name: str, want: Tensor, got: Tensor) -> tuple[Compared, int]:
    """A table of integers, which no conversion may change; its groups are its entries."""
    wrong = (want != got).flatten()
    count = int(wrong.sum())
    beyond = math.inf if count else 0.0
    return Compared(name, "integers", False, groups=len(wrong), wrong=count, beyond=beyond), int(wrong.int().argmax())


def decibel(signal: float, noise: float) -> float:
    """10 log10 of signal over noise; infinite where there is no noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf
