"""What a layer keeps between calls: window ring, compressed rows, the group in progress (spec 7.1, 8)."""

import mlx.core as mx
from mlx_lm.models.cache import _BaseCache

from .config import OVERLAP_RATIO

POOL_STEP = 256  # rows by which the store of compressed rows grows


class Ring:
    """The last W window keys, written in place: the token at position t lies in slot t mod W."""

    def __init__(self, size: int):
        self.size = size
        self.slots = None  # (B, W, d)

    def before(self, kv: mx.array, start: int) -> mx.array:
        """Keys of the up to W - 1 positions ahead of ``start``, oldest first: [B, n, d]; kv lends shape."""
        count = min(start, self.size - 1)
        if count == 0:
            return kv[:, :0]
        return self.slots[:, mx.arange(start - count, start) % self.size]

    def write(self, kv: mx.array, start: int) -> mx.array:
        """Store kv [B, S, d] of positions ``start``... and return all slots [B, W, d]."""
        batch, tokens, dim = kv.shape
        if self.slots is None:
            self.slots = mx.zeros((batch, self.size, dim), dtype=kv.dtype)
        kept = min(tokens, self.size)
        end = start + tokens
        if kept == 1:
            slot = (end - 1) % self.size
            self.slots[:, slot : slot + 1] = kv[:, -1:]
        else:
            self.slots[:, mx.arange(end - kept, end) % self.size] = kv[:, -kept:]
        return self.slots


class Pool:
    """A compressor's rows so far, and the K and Z of tokens whose rows are still to come.

    K and Z are kept as projected, without ape: a slot of ``pending`` is a position mod r, so ape is added
    when the block is pooled. ``before`` is the last complete block, which an overlapping compressor reads
    again.
    """

    def __init__(self, ratio: int, overlap: bool):
        self.ratio, self.overlap = ratio, overlap
        self.count = 0
        self.store = None  # (B, capacity, dim)
        self.pending = None  # K and Z, twice (B, r, width)
        self.before = None  # K and Z, twice (B, r, width)

    def push(self, kv: mx.array, gate: mx.array, start: int) -> tuple[mx.array, mx.array]:
        """Take K and Z [B, S, width] of positions ``start``..., give those of the blocks now complete."""
        new = (kv, gate)
        if self.pending is None:
            shape = (kv.shape[0], self.ratio, kv.shape[-1])
            self.pending = (mx.zeros(shape, dtype=kv.dtype), mx.zeros(shape, dtype=gate.dtype))
        filled = start % self.ratio
        whole = (filled + kv.shape[1]) // self.ratio * self.ratio
        if whole:
            joined = [mx.concatenate([old[:, :filled], x], axis=1) for old, x in zip(self.pending, new, strict=True)]
            done, new, filled = [x[:, :whole] for x in joined], [x[:, whole:] for x in joined], 0
            if self.overlap:
                self.before = tuple(x[:, -self.ratio :] for x in done)
        else:
            done = [x[:, :0] for x in new]
        for slots, x in zip(self.pending, new, strict=True):
            slots[:, filled : filled + x.shape[1]] = x
        return done[0], done[1]

    def append(self, rows: mx.array):
        """Add finished rows [B, N, dim] in place; the store grows in steps."""
        batch, new, dim = rows.shape
        end = self.count + new
        if self.store is None or end > self.store.shape[1]:
            used = self.store[:, : self.count] if self.store is not None else rows[:, :0]
            spare = -(-end // POOL_STEP) * POOL_STEP - self.count
            self.store = mx.concatenate([used, mx.zeros((batch, spare, dim), dtype=rows.dtype)], axis=1)
        self.store[:, self.count : end] = rows
        self.count = end

    def rows(self, like: mx.array, dim: int) -> mx.array:
        """All rows [B, R, dim]; ``like`` lends batch size and dtype as long as there is none."""
        if self.store is None:
            return mx.zeros((like.shape[0], 0, dim), dtype=like.dtype)
        return self.store[:, : self.count]

    @property
    def state(self):
        """All that is kept, as arrays and plain numbers."""
        return [self.ratio, self.overlap, self.count, self.store, self.pending, self.before]

    @state.setter
    def state(self, value):
        ratio, overlap, count, store, pending, before = value
        self.ratio, self.overlap, self.count = int(ratio), bool(overlap), int(count)
        self.store = _own(store)
        self.pending = None if pending is None else tuple(_own(x) for x in pending)
        self.before = None if before is None else tuple(_own(x) for x in before)

    def arrays(self) -> list[mx.array]:
        """The arrays that are kept."""
        found = [self.store, *(self.pending or ()), *(self.before or ())]
        return [x for x in found if x is not None]


class LayerCache(_BaseCache):
    """One layer's past under mlx-lm's cache protocol; all rows of a batch have equal length.

    ``offset`` counts the tokens seen; ``LayerCache.from_state(cache.state)`` continues where cache stands.
    """

    def __init__(self, window: int, ratio: int):
        self.offset = 0
        self.ring = Ring(window)
        overlap = ratio == OVERLAP_RATIO
        self.compressed = Pool(ratio, overlap) if ratio else None
        self.indexed = Pool(ratio, overlap) if overlap else None

    @property
    def state(self):
        """All that is kept, as arrays and plain numbers, for mlx-lm to evaluate and to save."""
        pools = [pool and pool.state for pool in (self.compressed, self.indexed)]
        return [self.offset, self.ring.size, self.ring.slots, *pools]

    @state.setter
    def state(self, value):
        offset, window, slots, compressed, indexed = value
        self.offset = int(offset)
        self.ring = Ring(int(window))
        self.ring.slots = _own(slots)
        self.compressed, self.indexed = _restored(compressed), _restored(indexed)

    @property
    def meta_state(self):
        """Empty: ``state`` holds the counters too, as mlx-lm 0.32 expects."""
        return ""

    @meta_state.setter
    def meta_state(self, value):
        if value:
            raise ValueError("LayerCache keeps nothing in meta_state, but one was set.")

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, spare room included."""
        arrays = [] if self.ring.slots is None else [self.ring.slots]
        for pool in (self.compressed, self.indexed):
            arrays += pool.arrays() if pool is not None else []
        return sum(x.nbytes for x in arrays)

    def size(self) -> int:
        """Tokens seen."""
        return self.offset

    def empty(self) -> bool:
        """Whether no token was seen."""
        return self.offset == 0

    def is_trimmable(self) -> bool:
        """Never: the ring has overwritten old keys, and the K and Z of finished blocks are gone."""
        return False


def _own(x: mx.array | None) -> mx.array | None:
    """A handle of our own, so that writes in place do not reach the cache whose state was taken."""
    return None if x is None else mx.array(x)


def _restored(state) -> Pool | None:
    if state is None:
        return None
    pool = Pool.__new__(Pool)
    pool.state = state
    return pool
