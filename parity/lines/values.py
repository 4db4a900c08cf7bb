"""Every intermediate value of the reference, and whether another value is one of them, whatever its layout."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..judging.tolerance import RULES, spacing
from .operations import Operation, fits, in_order

HIDDEN = -1e8  # what is added to a score to hide its key is below
SAME = 1e-3  # of its size: further apart in two types a value is another one, or drowned in rounding
SLACK = 2.0  # one run in another type shows the noise of a value once; another program's may be as much again


@dataclass(frozen=True)
class Known:
    """One of the reference's values, its key, the error that another program may have there, whether no token changes
    it, and the numbers as they lay when it was made."""

    value: np.ndarray
    key: str
    limit: float
    still: bool
    laid: np.ndarray | None = None


class Near:
    """Sorted values of one size, by their smallest number."""

    def __init__(self, values: Iterable[np.ndarray]):
        self.values = sorted(values, key=lambda one: one[0])
        self.smallest = [float(one[0]) for one in self.values]

    def to(self, value: np.ndarray, most: float) -> Iterator[int]:
        """Places of those of which no number can be nearer than `most` but for the others."""
        low, high = bisect_left(self.smallest, value[0] - most), bisect_right(self.smallest, value[0] + most)
        return (place for place in range(low, high) if abs(self.values[place][-1] - value[-1]) <= most)


@dataclass
class Values:
    """What the reference computes, by size; plain: size and number of what is the same everywhere."""

    known: dict[int, list[Known]] = field(default_factory=dict)
    near: dict[int, Near] = field(default_factory=dict)
    plain: Set[tuple[int, float]] = frozenset()
    masked: list[Known] = field(default_factory=list)  # what is seen of those of which something is hidden

    @classmethod
    def of(
        cls,
        exact: list[Operation],
        rounded: list[Operation],
        other: list[Operation],
        dtype: str,
        weights: Iterable[Tensor] = (),
    ) -> Values:
        """A run in float64, in the probe's type, and with other token ids; a value is found in each by itself, as they
        need not do the same operations. weights: of the checkpoint, known without having been used."""
        seen, elsewhere, found, masked = set(), {one.key for one in other}, [], []
        beside = {size: Near(values) for size, values in _by_size(rounded).items()}
        for one in exact:
            value = seen_of(one.value)
            if one.key in seen or one.plain or not len(value) or trivial(value) or not np.isfinite(value).all():
                continue
            seen.add(one.key)
            peak = max(abs(value[0]), abs(value[-1]))
            less = beside.get(len(value), NOTHING)
            noise = min((np.abs(less.values[i] - value).max() for i in less.to(value, SAME * peak)), default=np.inf)
            if noise <= SAME * peak:
                limit = RULES[dtype].maximum * SLACK * max(noise, spacing(getattr(torch, dtype), peak))
                whole = len(value) == len(one.value)
                known = Known(value, one.key, limit, one.key in elsewhere, one.laid if whole else None)
                (found if whole else masked).append(known)
        for value, key in map(in_order, filter(fits, weights)):
            if value[0] != value[-1] and np.isfinite(value).all():
                found.append(Known(value, key, 0.0, True))
        return cls.among(found, {(len(one.value), float(one.value[0])) for one in exact if one.plain}, masked)

    @classmethod
    def among(
        cls, found: Iterable[Known], plain: Set[tuple[int, float]] = frozenset(), masked: Iterable[Known] = ()
    ) -> Values:
        """By size and their smallest numbers."""
        known: dict[int, list[Known]] = {}
        for one in sorted(found, key=lambda one: one.value[0]):
            known.setdefault(len(one.value), []).append(one)
        return cls(known, {size: Near(one.value for one in ones) for size, ones in known.items()}, plain, [*masked])

    def find(self, value: np.ndarray) -> Known | None:
        """The one that a sorted value is; first one that tokens change."""
        known = self.known.get(len(value), [])
        widest = max((one.limit for one in known), default=0.0)
        near = (known[i] for i in self.near.get(len(value), NOTHING).to(value, widest))
        found = [one for one in near if np.abs(one.value - value).max() <= one.limit]
        return min(found, key=lambda one: one.still, default=None)

    @cached_property
    def bare(self) -> Values:
        """The same without their zeros, for ports keep rows that are not in use, and add one for a sink; and what is
        seen of scores of which some are hidden."""
        known = [*self.masked, *(one for ones in self.known.values() for one in ones)]
        stripped = (replace(one, value=one.value[one.value != 0]) for one in known)
        return Values.among([one for one in stripped if len(one.value) and not trivial(one.value)])


NOTHING = Near(())


def _by_size(operations: list[Operation]) -> dict[int, list[np.ndarray]]:
    found: dict[int, list[np.ndarray]] = {}
    for one in {one.key: seen_of(one.value) for one in operations}.values():
        if len(one) and np.isfinite(one).all():
            found.setdefault(len(one), []).append(one)
    return found


def seen_of(value: np.ndarray) -> np.ndarray:
    """Sorted numbers without those that stand for what is hidden; a mask alone is left as it is."""
    return value[np.searchsorted(value, HIDDEN) :] if value[0] < HIDDEN and value[-1] != 0 else value


def trivial(value: np.ndarray) -> bool:
    """Of sorted numbers: whether all are equal."""
    return bool(value[0] == value[-1])
