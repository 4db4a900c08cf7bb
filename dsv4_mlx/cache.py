"""What a layer keeps between calls, under mlx-lm's cache contract (spec 7.1, 8)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import mlx.core as mx
from mlx_lm.models import cache as mlx_lm_cache

from .config import OVERLAP_RATIO
from .errors import UsageError
from .pool import REWIND, Pool
from .positions import Call, Row
from .ring import Ring


class LayerCache(mlx_lm_cache._BaseCache):
    """One layer's past, for one sequence or for a batch whose sequences differ in length.

    ``rows`` says how long each is; everything else lies by position in the ring of window keys and in
    the pools of compressed rows. So rewinding, padding and batches are a matter of ``rows`` alone.

    ``held``: as long as a sequence never was longer, nothing of it was overwritten, in no layer of the
    model. Every layer must have the same, so that a rewind is granted by all of them or by none.
    """

    def __init__(self, window: int, ratio: int, held: int | None = None):
        self.window, self.ratio = window, ratio
        self.rows: tuple[Row, ...] = (Row(),)
        self.ring = Ring(window + REWIND)
        overlap = ratio == OVERLAP_RATIO
        self.compressed = Pool(ratio, overlap) if ratio else None
        self.indexed = Pool(ratio, overlap) if overlap else None
        self.held = held if held is not None else min(ring.size for ring in self._rings())

    def to_quantized(self, group_size: int = 64, bits: int = 4):
        """mlx-lm asks for this where ``kv_bits`` is given. Raises UsageError: ignoring it would be silent."""
        raise UsageError(f"The cache is not quantised to {bits} bits: leave kv_bits out; it is small as it is.")

    # --- calls ---------------------------------------------------------------------------------------------

    def call(self, batch: int, tokens: int, padding: tuple[list[int], list[int]] | None = None) -> Call:
        """The next call, of ``tokens`` tokens a sequence; an empty cache takes any batch. Changes nothing."""
        rows = self.rows
        if len(rows) != batch:
            if len(rows) > 1 or self.ring.slots is not None:
                raise UsageError(f"The cache holds {len(rows)} sequences, but {batch} came; give as many.")
            rows = rows * batch
        return Call(rows, tokens, padding)

    def advance(self, call: Call):
        """Count the call's tokens as seen, once all was written."""
        self.rows = call.after

    def unread(self) -> list[mx.array]:
        """What a call wrote though a later one reads it: who evaluates a call's result evaluates this too.

        Otherwise each token's K and Z would hang on those before until a block is complete.
        """
        return [ring.slots for pool in self._pools() for ring in (pool.kv, pool.gate) if ring.slots is not None]

    @property
    def offset(self) -> int | mx.array:
        """Tokens seen: a number, or [B] where sequences differ."""
        offsets = [row.offset for row in self.rows]
        return offsets[0] if len({*offsets}) == 1 else mx.array(offsets)

    def fits(self, window: int, ratio: int, dim: int) -> bool:
        """Whether it can be the cache of a layer with these sizes."""
        slots = self.ring.slots
        return (self.window, self.ratio) == (window, ratio) and (slots is None or slots.shape[-1] == dim)

    # --- padding -------------------------------------------------------------------------------------------

    def prepare(
        self,
        *,
        left_padding: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
        right_padding: Sequence[int] | None = None,
    ):
        """Announce padding, a number a sequence: what the next calls begin with, and how many real tokens
        follow in them before the padding on the right. Padding is never written nor seen and takes no position.
        """
        if lengths is None and right_padding is not None and max(right_padding) > 0:
            raise UsageError("Padding on the right needs lengths, the number of real tokens of each sequence.")
        given = left_padding if left_padding is not None else lengths
        if given is None:
            return
        rows = self.rows * len(given) if self._fresh() else self.rows
        left = list(left_padding) if left_padding is not None else [row.left for row in rows]
        ends = list(lengths) if lengths is not None else [row.length for row in rows]
        if not len(rows) == len(left) == len(ends):
            raise UsageError(f"The cache holds {len(rows)} sequences, but padding for {len(given)} came.")
        self.rows = tuple(row._replace(left=skip, length=end) for row, skip, end in zip(rows, left, ends, strict=True))

    def finalize(self):
        """Forget the padding on the right: whatever comes next is real."""
        self.rows = tuple(row._replace(left=0, length=None) for row in self.rows)

    # --- rewinding -----------------------------------------------------------------------------------------

    def is_trimmable(self) -> bool:
        """Whether ``trim`` grants what mlx-lm is about to ask of it.

        mlx-lm asks without a number. Speculative decoding means the tokens of a rejected draft, and REWIND
        of them can always be taken back. Its store of prompts means any prefix, and believes the
        answer: to it, only a cache of which nothing was overwritten says yes.
        """
        return not _asked_by_a_store() or all(row.reach <= self.held for row in self.rows)

    def trim(self, n: int) -> int:
        """Take back the last ``n`` tokens of every sequence, all it has where it has fewer; what was taken back."""
        if n < 0:
            raise UsageError(f"A cache cannot be trimmed by {n} tokens; give 0 or more.")
        rows = tuple(row._replace(offset=max(row.offset - n, 0)) for row in self.rows)
        for old, new in zip(self.rows, rows, strict=True):
            if new.reach > self.held and new.reach - new.offset > REWIND:
                most = max(old.offset - old.reach + REWIND, 0)
                raise UsageError(
                    f"The cache cannot be trimmed by {n} tokens: of a sequence of {old.offset} it can take back "
                    f"{most} at most, since older window keys are overwritten; compute the prefix anew."
                )
        taken = max(old.offset - new.offset for old, new in zip(self.rows, rows, strict=True))
        self.rows = rows
        return taken

    # --- batches -------------------------------------------------------------------------------------------

    def filter(self, batch_indices: Sequence[int] | mx.array):
        """Keep these sequences, in this order."""
        keep = [
            int(index) for index in (batch_indices.tolist() if isinstance(batch_indices, mx.array) else batch_indices)
        ]
        outside = [index for index in keep if not -len(self.rows) <= index < len(self.rows)]
        if outside:
            raise UsageError(f"The cache holds {len(self.rows)} sequences, but number {outside[0]} was asked for.")
        self.rows = tuple(self.rows[index] for index in keep)
        chosen = mx.array(keep, dtype=mx.int32)
        self._replace([None if x is None else x[chosen] for x in self._arrays()])

    def extract(self, idx: int) -> LayerCache:
        """Sequence ``idx`` by itself, in arrays of its own."""
        alone = self.__copy__()
        alone.filter([idx])
        return alone

    def extend(self, other: LayerCache):
        """Append the sequences of ``other``."""
        self._take(self.merge([self, other]))

    @classmethod
    def merge(cls, caches: Sequence[LayerCache]) -> LayerCache:
        """One cache of all their sequences, in order; the caches stay as they are."""
        first = caches[0]
        if any(cache._kind() != first._kind() for cache in caches):
            raise UsageError("Caches of different layers or models cannot be merged.")
        merged = cls(first.window, first.ratio, first.held)
        merged.rows = tuple(row for cache in caches for row in cache.rows)
        parts = zip(*(cache._arrays() for cache in caches), strict=True)
        merged._replace([_stacked(arrays, [len(cache.rows) for cache in caches]) for arrays in parts])
        return merged

    # --- as mlx-lm stores and weighs it ----------------------------------------------------------------------

    @property
    def state(self):
        """All that is kept, as arrays and plain numbers, for mlx-lm to evaluate and to save."""
        return [self.window, self.ratio, self.held, [list(row) for row in self.rows], self._arrays()]

    @state.setter
    def state(self, value):
        window, ratio, held, rows, arrays = value
        self.__init__(int(window), int(ratio), int(held))
        self.rows = tuple(Row(*(None if x is None else int(x) for x in row)) for row in rows)
        # Handles of our own, so that writes in place do not reach the cache whose state was taken.
        self._replace([None if x is None else mx.array(x) for x in arrays])

    @property
    def meta_state(self):
        """Empty: ``state`` holds the counters too, as mlx-lm 0.32 expects."""
        return ""

    @meta_state.setter
    def meta_state(self, value):
        if value:
            raise ValueError("LayerCache keeps nothing in meta_state, but one was set.")

    def __copy__(self) -> LayerCache:
        return self.from_state(self.state)

    def __deepcopy__(self, memo) -> LayerCache:
        return self.__copy__()

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, spare room included."""
        return sum(x.nbytes for x in self._arrays() if x is not None)

    def size(self) -> int:
        """Tokens seen, of the longest sequence."""
        return max(row.offset for row in self.rows)

    def empty(self) -> bool:
        """Whether no token was seen."""
        return self.size() == 0

    # --- its parts -------------------------------------------------------------------------------------------

    def _fresh(self) -> bool:
        return len(self.rows) == 1 and self.ring.slots is None

    def _kind(self) -> tuple:
        return type(self), self.window, self.ratio, self.held

    def _pools(self) -> list[Pool]:
        return [pool for pool in (self.compressed, self.indexed) if pool is not None]

    def _rings(self) -> list[Ring]:
        return [self.ring, *(ring for pool in self._pools() for ring in (pool.kv, pool.gate))]

    def _arrays(self) -> list[mx.array | None]:
        """Slots of every ring, then the store of every pool."""
        return [ring.slots for ring in self._rings()] + [pool.store for pool in self._pools()]

    def _replace(self, arrays: list[mx.array | None]):
        """Put arrays in the order of ``_arrays`` in their places."""
        rings, pools = self._rings(), self._pools()
        for ring, slots in zip(rings, arrays[: len(rings)], strict=True):
            ring.slots = slots
        for pool, store in zip(pools, arrays[len(rings) :], strict=True):
            pool.store = store

    def _take(self, other: LayerCache):
        self.rows = other.rows
        self._replace(other._arrays())


def _stacked(arrays: Sequence[mx.array | None], batches: list[int]) -> mx.array | None:
    """Arrays [B_i, n_i, d] below each other, shorter or absent ones filled up with zeros; None if all are absent."""
    found = [x for x in arrays if x is not None]
    if not found:
        return None
    length, dim, dtype = max(x.shape[1] for x in found), found[0].shape[-1], found[0].dtype
    if any(x.shape[-1] != dim for x in found):
        raise UsageError("Caches of different layers or models cannot be merged.")
    filled = []
    for x, batch in zip(arrays, batches, strict=True):
        if x is None:
            x = mx.zeros((batch, 0, dim), dtype=dtype)
        filled.append(mx.pad(x, [(0, 0), (0, length - x.shape[1]), (0, 0)]))
    return mx.concatenate(filled, axis=0)


def _asked_by_a_store() -> bool:
    """Whether mlx-lm's LRUPromptCache is among the nearest callers; see ``LayerCache.is_trimmable``."""
    frame = sys._getframe(2)
    for _ in range(4):
        if frame is None:
            return False
        if isinstance(frame.f_locals.get("self"), mlx_lm_cache.LRUPromptCache):
            return True
        frame = frame.f_back
    return False
