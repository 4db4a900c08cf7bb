"""What a layer keeps between calls, under mlx-lm's cache contract (spec 7.1, 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx
from mlx_lm.models import cache as mlx_lm_cache

from .config import OVERLAP_RATIO
from .errors import UsageError
from .pool import REWIND, Pool
from .positions import Call, Row
from .ring import Ring
from .token_ids import TokenIds


class LayerCache(mlx_lm_cache._BaseCache):
    """One layer's past, for one sequence or for a batch whose sequences differ in length.

    ``rows`` says how long each is; everything else lies by position in the ring of window keys and in
    the pools of compressed rows. So rewinding, padding and batches are a matter of ``rows`` alone.

    ``held``: as long as a sequence never was longer, nothing of it was overwritten, in no layer of the
    model. Every layer must have the same, so that a rewind is granted by all of them or by none.

    ``place``: the entry's index in a cache of ``Model.make_cache``, whose entry 0 keeps the token ids too. Such a cache
    can be rewound by any number of tokens: the model's next call computes anew what is overwritten. None for an entry
    by itself and for those of MTP blocks, which refuse such a rewind.
    """

    def __init__(self, window: int, ratio: int, held: int | None = None, place: int | None = None):
        self.window, self.ratio, self.place = window, ratio, place
        self.rows: tuple[Row, ...] = (Row(),)
        self.ring = Ring(window + REWIND)
        overlap = ratio == OVERLAP_RATIO
        self.compressed = Pool(ratio, overlap) if ratio else None
        self.indexed = Pool(ratio, overlap, axis=2) if overlap else None
        self.tokens = TokenIds() if place == 0 else None
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
        """True. mlx-lm means any number of tokens by it, or those of a draft; see ``trim``."""
        return True

    def trim(self, n: int) -> int:
        """Take back the last ``n`` tokens of every sequence, all it has where it has fewer; what was taken back.

        Raises UsageError where what is left cannot be continued: further back than REWIND in an entry without a
        ``place`` of which something was overwritten.
        """
        if n < 0:
            raise UsageError(f"A cache cannot be trimmed by {n} tokens; give 0 or more.")
        rows = tuple(row._replace(offset=max(row.offset - n, 0)) for row in self.rows)
        for old, new in zip(self.rows, rows, strict=True):
            if self.place is None and self._overwritten(new):
                most = max(old.offset - old.reach + REWIND, 0)
                raise UsageError(
                    f"The cache cannot be trimmed by {n} tokens: of a sequence of {old.offset} it can take back "
                    f"{most} at most, since older window keys are overwritten; compute the prefix anew."
                )
        taken = max(old.offset - new.offset for old, new in zip(self.rows, rows, strict=True))
        self.rows = rows
        return taken

    def lost(self) -> dict[int, mx.array]:
        """Of entry 0: the ids [1, n] of each sequence that must be computed anew before the next call."""
        gone = [index for index, row in enumerate(self.rows) if self._overwritten(row)]
        return {index: self.tokens.store[index : index + 1, : self.rows[index].offset] for index in gone}

    def restore(self, fresh: Mapping[int, LayerCache]):
        """Put what was computed anew, one sequence each, in the places of those lost; announced padding stays."""
        rows = self.rows
        self._take(self.merge([fresh.get(index) or self.extract(index) for index in range(len(rows))]))
        self.rows = tuple(
            new._replace(left=old.left, length=old.length) for old, new in zip(rows, self.rows, strict=True)
        )

    def _overwritten(self, row: Row) -> bool:
        return row.reach > self.held and row.reach - row.offset > REWIND

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

    def extract(self, idx: int) -> ExtractedLayerCache:
        """Sequence ``idx`` by itself, in arrays of its own."""
        alone = ExtractedLayerCache.from_state(self.state)
        alone.filter([idx])
        return alone

    def extend(self, other: LayerCache):
        """Append the sequences of ``other``."""
        self._take(self.merge([self, other]))

    @staticmethod
    def merge(caches: Sequence[LayerCache]) -> LayerCache:
        """One cache of all their sequences, in order; the caches stay as they are."""
        first = caches[0]
        if any(cache._kind() != first._kind() for cache in caches):
            raise UsageError("Caches of different layers or models cannot be merged.")
        merged = LayerCache(*first._kind())
        merged.rows = tuple(row for cache in caches for row in cache.rows)
        batches = [len(cache.rows) for cache in caches]
        parts = zip(merged._axes(), *(cache._arrays() for cache in caches), strict=True)
        merged._replace([_stacked(arrays, batches, axis) for axis, *arrays in parts])
        return merged

    # --- as mlx-lm stores and weighs it ----------------------------------------------------------------------

    @property
    def state(self):
        """All that is kept, as arrays and plain numbers, for mlx-lm to evaluate and to save."""
        return [*self._kind(), [list(row) for row in self.rows], self._arrays()]

    @state.setter
    def state(self, value):
        *kind, rows, arrays = value
        self.__init__(*(None if x is None else int(x) for x in kind))
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
        return LayerCache.from_state(self.state)

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
        return self.window, self.ratio, self.held, self.place

    def _pools(self) -> list[Pool]:
        return [pool for pool in (self.compressed, self.indexed) if pool is not None]

    def _rings(self) -> list[Ring]:
        return [self.ring, *(ring for pool in self._pools() for ring in (pool.kv, pool.gate))]

    def _stores(self) -> list[Pool | TokenIds]:
        return self._pools() + ([] if self.tokens is None else [self.tokens])

    def _arrays(self) -> list[mx.array | None]:
        """Slots of every ring, then the store of every pool and of the ids."""
        return [ring.slots for ring in self._rings()] + [kept.store for kept in self._stores()]

    def _axes(self) -> list[int]:
        """Along which axis each of ``_arrays`` holds what belongs to a sequence's positions."""
        return [1] * len(self._rings()) + [kept.axis for kept in self._stores()]

    def _replace(self, arrays: list[mx.array | None]):
        """Put arrays in the order of ``_arrays`` in their places."""
        rings, stores = self._rings(), self._stores()
        for ring, slots in zip(rings, arrays[: len(rings)], strict=True):
            ring.slots = slots
        for kept, store in zip(stores, arrays[len(rings) :], strict=True):
            kept.store = store

    def _take(self, other: LayerCache):
        self.rows = other.rows
        self._replace(other._arrays())


class ExtractedLayerCache(LayerCache):
    """A sequence of a batch by itself, as mlx-lm's store of prompts keeps it.

    A cache that says it is trimmable makes the store drop the prefixes that it has, a system prompt that many share
    for example, and each would be computed anew. So this one says so only while a rewind costs nothing. Its copies,
    which the store hands out, and what a file of it gives are LayerCaches.
    """

    def is_trimmable(self) -> bool:
        """Whether any rewind is granted and nothing must be computed anew for it."""
        return all(row.reach <= self.held for row in self.rows)


def _stacked(arrays: Sequence[mx.array | None], batches: list[int], axis: int) -> mx.array | None:
    """Arrays [B_i, ...] below each other, absent ones or those shorter along ``axis`` filled up with zeros; None if
    all are absent.
    """
    found = [x for x in arrays if x is not None]
    if not found:
        return None
    length, rest = max(x.shape[axis] for x in found), _other_sizes(found[0], axis)
    if any(_other_sizes(x, axis) != rest for x in found):
        raise UsageError("Caches of different layers or models cannot be merged.")
    filled = []
    for x, batch in zip(arrays, batches, strict=True):
        if x is None:
            x = mx.zeros((batch, *found[0].shape[1:axis], 0, *found[0].shape[axis + 1 :]), dtype=found[0].dtype)
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, length - x.shape[axis])
        filled.append(mx.pad(x, widths))
    return mx.concatenate(filled, axis=0)


def _other_sizes(x: mx.array, axis: int) -> tuple[int, ...]:
    """Its shape but for the sequences and ``axis``."""
    return x.shape[1:axis] + x.shape[axis + 1 :]
