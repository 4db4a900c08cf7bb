"""Which positions the tokens of a call take: what caches, masks and rotations all ask (spec 8)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import NamedTuple, TypeVar

import mlx.core as mx

T = TypeVar("T")


class Row(NamedTuple):
    """One sequence of a batch.

    offset: tokens seen, so the next one takes this position. reach: the most that were ever seen, above
    ``offset`` after a rewind. left: padding that the next calls begin with. length: real tokens of the next
    calls, padding comes after them; None where no padding was announced.
    """

    offset: int = 0
    reach: int = 0
    left: int = 0
    length: int | None = None

    def after(self, skipped: int, count: int) -> Row:
        """This row once ``skipped`` padding tokens and ``count`` real ones have passed."""
        end = self.offset + count
        length = None if self.length is None else max(self.length - count, 0)
        return Row(end, max(end, self.reach), max(self.left - skipped, 0), length)


class Call:
    """The tokens of one call: token i of row b takes position starts[b] + i, if i < counts[b].

    What stands after ``counts[b]`` is padding: it goes through the layers for the shape's sake, but is written
    nowhere, and its positions lie after those of all real tokens, so that none of them sees it. Padding
    on the left is turned to the right first (``inward``). ``padding``: left padding and real tokens a
    row for this call alone.

    Where rows do not differ, ``uniform`` is true, ``start`` holds for all, and index arrays lack the batch axis.
    """

    def __init__(self, rows: tuple[Row, ...], tokens: int, padding: tuple[list[int], list[int]] | None = None):
        self.rows, self.tokens = rows, tokens
        first = rows[0]
        self.start = first.offset
        self._made: dict[Hashable, object] = {}
        self.uniform = padding is None and all(
            row.offset == first.offset and row.left == 0 and row.length is None for row in rows
        )
        if self.uniform:
            self.skipped, self.counts = [0] * len(rows), [tokens] * len(rows)
        elif padding is not None:
            self.skipped, self.counts = padding
        else:
            self.skipped = [min(row.left, tokens) for row in rows]
            self.counts = [_real(row, tokens - skip) for row, skip in zip(rows, self.skipped, strict=True)]

    @classmethod
    def of(cls, start: int | Call, x: mx.array) -> Call:
        """``start`` itself if it is a call, otherwise the call of x [B, S, ...] from that position on."""
        return start if isinstance(start, Call) else cls((Row(start, start),) * x.shape[0], x.shape[1])

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """make(), computed once a call: layers share masks and indices that depend on positions alone."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @property
    def starts(self) -> list[int]:
        """Position of each row's first token."""
        return [row.offset for row in self.rows]

    @property
    def ends(self) -> list[int]:
        """Position after each row's last token."""
        return [row.offset + count for row, count in zip(self.rows, self.counts, strict=True)]

    @property
    def last(self) -> int:
        """The largest of ``ends``."""
        return self.start + self.tokens if self.uniform else max(self.ends)

    @cached_property
    def positions(self) -> mx.array:
        """Position of each token: [S], or [B, S] where rows differ."""
        if self.uniform:
            return mx.arange(self.start, self.start + self.tokens)
        return mx.array(self.starts)[:, None] + mx.arange(self.tokens)

    @cached_property
    def after(self) -> tuple[Row, ...]:
        """The rows once this call is through."""
        passed = zip(self.rows, self.skipped, self.counts, strict=True)
        return tuple(row.after(skip, count) for row, skip, count in passed)

    def tail(self, size: int) -> tuple[mx.array, mx.array, mx.array] | None:
        """Where the last ``size`` real tokens of each row stand and go: rows, tokens, slots, all [N]; None if N = 0."""
        return self.once(("tail", size), lambda: self._tail(size))

    def _tail(self, size: int):
        found = [
            (row, token, (start + token) % size)
            for row, (start, count) in enumerate(zip(self.starts, self.counts, strict=True))
            for token in range(max(count - size, 0), count)
        ]
        return tuple(mx.array(list(x)) for x in zip(*found, strict=True)) if found else None

    def inward(self, x: mx.array) -> mx.array:
        """x [B, S, ...] as it was given -> with padding on the right only."""
        return self._turned(x, 1)

    def outward(self, x: mx.array) -> mx.array:
        """The inverse of ``inward``."""
        return self._turned(x, -1)

    def _turned(self, x: mx.array, sign: int) -> mx.array:
        if not any(self.skipped):
            return x
        index = (mx.arange(self.tokens) + sign * mx.array(self.skipped)[:, None]) % self.tokens
        return x[mx.arange(len(x))[:, None], index]


def _real(row: Row, tokens: int) -> int:
    """How many of ``tokens`` are real."""
    return tokens if row.length is None else min(tokens, row.length)
