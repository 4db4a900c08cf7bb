"""TokenIds: what each sequence consists of, so that a prefix of any length can be computed anew."""

import mlx.core as mx

from .pool import grown
from .positions import Call


class TokenIds:
    """The ids of each sequence: that of position p at ``store[:, p]``; behind a sequence's end lies anything."""

    axis = 1  # of the positions, as in a Pool

    def __init__(self):
        self.store = None  # (B, capacity), int32

    def write(self, ids: mx.array, call: Call) -> mx.array:
        """Store the call's ids [B, S], padding left out, in place; they come back.

        Who evaluates what hangs on them evaluates the store too: no later call reads it, so it would pile up.
        """
        new = ids.astype(mx.int32)
        self.store = grown(self.store, len(call.rows), call.last, new)
        if call.uniform:
            self.store[:, call.start : call.last] = new
        elif (tail := call.tail(self.store.shape[1])) is not None:
            rows, tokens, places = tail
            self.store[rows, places] = new[rows, tokens]
        return mx.depends(ids, self.store)
