"""Ring: what belongs to the last positions of each sequence, written in place (spec 8)."""

import mlx.core as mx

from .positions import Call


class Ring:
    """Vectors of the last ``size`` positions: that of position p lies in slot p mod size.

    A rewind writes nothing: the slots of what was taken back are stale until they are written again, and
    whoever reads asks by position, never for one that is not there.
    """

    def __init__(self, size: int):
        self.size = size
        self.slots = None  # (B, size, d)

    def write(self, x: mx.array, call: Call) -> mx.array:
        """Store x [B, S, d] of the call's tokens, padding left out, and return all slots [B, size, d]."""
        if self.slots is None:
            self.slots = mx.zeros((x.shape[0], self.size, x.shape[-1]), dtype=x.dtype)
        if call.uniform:
            kept, end = min(call.tokens, self.size), call.start + call.tokens
            slot = (end - kept) % self.size
            if slot + kept <= self.size:
                self.slots[:, slot : slot + kept] = x[:, -kept:]
            else:
                self.slots[:, mx.arange(end - kept, end) % self.size] = x[:, -kept:]
        elif (tail := call.tail(self.size)) is not None:
            rows, tokens, slots = tail
            self.slots[rows, slots] = x[rows, tokens]
        return self.slots

    def read(self, start: int, count: int) -> mx.array:
        """What lies at positions ``start`` ... start + count - 1 of every sequence: [B, count, d]."""
        slot = start % self.size
        if slot + count <= self.size:
            return self.slots[:, slot : slot + count]
        return self.slots[:, mx.arange(start, start + count) % self.size]

    def before(self, count: int, call: Call) -> mx.array:
        """The ``count`` positions ahead of the call, oldest first: [B, count, d].

        A sequence with fewer gives what its slots happen to hold; its mask hides that.
        """
        if call.uniform:
            return self.read(call.start - count, count)
        slots = call.once(
            ("before", count, self.size), lambda: (call.positions[:, :1] + mx.arange(-count, 0)) % self.size
        )
        return self.slots[mx.arange(slots.shape[0])[:, None], slots]
