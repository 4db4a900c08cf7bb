"""Pool: a compressor's rows so far, and the K and Z of tokens whose rows are still to come (spec 7.1)."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from .positions import Call
from .ring import Ring

STEP = 256  # rows or ids by which what grows with the sequence grows
REWIND = 16  # tokens that can always be taken back: what a rejected draft needs


def grown(store: mx.array | None, batch: int, count: int, like: mx.array, axis: int = 1) -> mx.array:
    """``store`` [B, ...] with room for ``count`` along ``axis``, in whole STEPs; ``like`` lends a new one all else."""
    held = store.shape[axis] if store is not None else 0
    if store is not None and count <= held:
        return store
    shape = [batch, *like.shape[1:]]
    shape[axis] = -(-count // STEP) * STEP - held
    spare = mx.zeros(shape, dtype=like.dtype)
    return spare if store is None else mx.concatenate([store, spare], axis=axis)


@dataclass(frozen=True)
class Blocks:
    """K and Z [N, n * r, width] of the blocks that a call completes, and where their rows go.

    ``before``: K and Z [N, r, width] of the block ahead, None where none is needed. ``first``: index of the
    first block, a number, or [N, 1] where sequences differ; then some may have fewer than n blocks.
    """

    kv: mx.array
    gate: mx.array
    before: tuple[mx.array, mx.array] | None
    first: int | mx.array


class Pool:
    """A compressor's memory of each sequence: row s lies at ``store[:, s]`` once block s is complete.

    K and Z are kept as projected, without ape, in rings by position, as far back as the block in progress,
    an overlapping compressor's block ahead of it, and a rewind ask for. A rewind touches nothing here:
    how many rows there are follows from the positions of the next call.

    ``axis`` 2: row s lies at ``store[:, :, s]``, as the indexer's product with all rows reads it.
    """

    def __init__(self, ratio: int, overlap: bool, axis: int = 1):
        self.ratio, self.overlap, self.axis = ratio, overlap, axis
        needed = REWIND + ratio - 1 + (ratio if overlap else 0)
        size = -(-needed // ratio) * ratio  # whole blocks, so that a block never wraps
        self.kv, self.gate = Ring(size), Ring(size)
        self.store = None  # (B, capacity, dim), or (B, dim, capacity)

    def push(self, kv: mx.array, gate: mx.array, call: Call) -> Blocks | None:
        """Take K and Z [B, S, width] of the call's tokens, give those of the blocks now complete."""
        blocks = self._aligned(kv, gate, call) if call.uniform else self._gathered(kv, gate, call)
        self.kv.write(kv, call)
        self.gate.write(gate, call)
        return blocks

    def _aligned(self, kv: mx.array, gate: mx.array, call: Call) -> Blocks | None:
        """Where all sequences are equally long: what waited, then the call's tokens."""
        first, end = call.start // self.ratio, (call.start + call.tokens) // self.ratio
        if first == end:
            return None
        ahead = int(self.overlap and first > 0)
        base = (first - ahead) * self.ratio
        joined = (kv, gate)
        if base < call.start:
            waited = [ring.read(base, call.start - base) for ring in (self.kv, self.gate)]
            joined = [mx.concatenate(pair, axis=1) for pair in zip(waited, joined, strict=True)]
        cut, stop = ahead * self.ratio, end * self.ratio - base
        before = tuple(x[:, :cut] for x in joined) if ahead else None
        return Blocks(joined[0][:, cut:stop], joined[1][:, cut:stop], before, first)

    def _gathered(self, kv: mx.array, gate: mx.array, call: Call) -> Blocks | None:
        """Where they are not: each sequence's blocks, gathered by position; only those that complete any."""
        plan = self._plan(call)
        if plan is None:
            return None
        joined = []
        for ring, x in ((self.kv, kv), (self.gate, gate)):
            past = ring.slots if ring.slots is not None else mx.zeros((x.shape[0], ring.size, x.shape[-1]), x.dtype)
            joined.append(mx.concatenate([past, x], axis=1)[plan.rows[:, None], plan.index])
        if self.overlap:  # nothing precedes position 0: weight exactly 0
            joined = [mx.where(plan.absent, 0, joined[0]), mx.where(plan.absent, -mx.inf, joined[1])]
        cut = self.ratio if self.overlap else 0
        before = tuple(x[:, :cut] for x in joined) if cut else None
        return Blocks(joined[0][:, cut:], joined[1][:, cut:], before, plan.first)

    def _plan(self, call: Call) -> _Plan | None:
        return call.once(("blocks", self.ratio, self.overlap), lambda: _plan(call, self))

    def write(self, rows: mx.array, call: Call):
        """Store the rows [N, n, dim] of the blocks that ``push`` gave, in place; the store grows in steps."""
        batch, count = len(call.rows), call.last // self.ratio
        laid = rows.swapaxes(1, self.axis)
        self.store = grown(self.store, batch, count, laid, self.axis)
        if call.uniform:
            self.store[self._at(slice(None), slice(call.start // self.ratio, count))] = laid
        else:
            plan = self._plan(call)
            self.store[self._at(plan.target_rows, plan.targets)] = rows[plan.sources, plan.source_blocks]

    def _at(self, sequences: slice | mx.array, rows: slice | mx.array) -> tuple:
        """The index into ``store`` of some rows."""
        return (sequences, rows) if self.axis == 1 else (sequences, slice(None), rows)

    def rows(self, call: Call, like: mx.array, dim: int) -> mx.array:
        """All rows after the call, [B, R, dim]; sequences with fewer hold anything behind theirs.

        ``like`` lends its dtype as long as there is none.
        """
        if self.store is None:
            return mx.zeros((like.shape[0], 0, dim), dtype=like.dtype)
        return self.store[self._at(slice(None), slice(call.last // self.ratio))].swapaxes(1, self.axis)


@dataclass(frozen=True)
class _Plan:
    """Indices of a call whose sequences differ: N of them complete blocks, at most n; L = r * (n + 1 with overlap).

    rows [N], first [N, 1]; index [N, L] into ring slots followed by the call's tokens, absent [N, L, 1] where
    a position is below 0; each row to be stored goes from (sources, source_blocks) to (target_rows, targets).
    """

    rows: mx.array
    first: mx.array
    index: mx.array
    absent: mx.array
    sources: mx.array
    source_blocks: mx.array
    target_rows: mx.array
    targets: mx.array


def _plan(call: Call, pool: Pool) -> _Plan | None:
    ratio, size = pool.ratio, pool.kv.size
    spans = [(start // ratio, end // ratio) for start, end in zip(call.starts, call.ends, strict=True)]
    chosen = [row for row, (first, end) in enumerate(spans) if end > first]
    if not chosen:
        return None
    most = max(spans[row][1] - spans[row][0] for row in chosen)
    rows, first = mx.array(chosen), mx.array([[spans[row][0]] for row in chosen])
    starts = mx.array([[call.starts[row]] for row in chosen])
    position = (first - int(pool.overlap)) * ratio + mx.arange((most + int(pool.overlap)) * ratio)
    in_call = size + mx.minimum(position - starts, call.tokens - 1)
    index = mx.where(position < starts, position % size, in_call)
    moves = [
        (source, block, row, spans[row][0] + block)
        for source, row in enumerate(chosen)
        for block in range(spans[row][1] - spans[row][0])
    ]
    return _Plan(rows, first, index, position[..., None] < 0, *(mx.array(list(x)) for x in zip(*moves, strict=True)))
