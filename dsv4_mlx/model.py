"""DeepSeek-V4 under mlx-lm's model contract (spec 3)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import mlx.core as mx
import mlx.nn as nn

from . import checkpoint, norm, padding
from .block import Block
from .cache import LayerCache
from .config import ModelArgs
from .errors import UsageError
from .hyper_connection import HyperHead
from .mtp import MTPBlock
from .norm import RMSNorm
from .positions import Call
from .quantization import Embedding, Linear, pack

CHUNK = 2048  # tokens of a prefix that are computed anew in one call


class Model(nn.Module):
    """Embedding, n equal streams, blocks, collapse, norm, head; names are the checkpoint's.

    ``layers`` is the list of backbone blocks; ``mtp`` the list of MTP blocks, empty where there are none.
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.embed = Embedding(args)
        self.layers = [Block(args, index) for index in range(args.num_hidden_layers)]
        self.hc_head = HyperHead(args)
        self.norm = RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.head = Linear(args.hidden_size, args.vocab_size, args)
        self.mtp = [MTPBlock(args, depth) for depth in range(args.num_nextn_predict_layers)]

    def streams(self, ids: mx.array, cache: list[LayerCache] | None = None, mask: mx.array | None = None) -> mx.array:
        """Token ids [B, S] -> the final streams [B, S, n, D], before hc_head."""
        call, states = self._call(self.layers, ids, cache, mask)
        ids = call.inward(ids)
        if cache is not None and cache[0].tokens is not None:
            ids = cache[0].tokens.write(ids, call)
        x = self.embed(ids)
        streams = mx.repeat(x[:, :, None], self.args.hc_mult, axis=2)
        for layer, state in zip(self.layers, states, strict=True):
            streams = layer(streams, ids, call, state)
        return call.outward(streams)

    def logits(self, streams: mx.array) -> mx.array:
        """Final streams [B, S, n, D] -> float32 logits of every position [B, S, V]."""
        return self.head(norm.wide(self.norm(self.hc_head(streams))))

    def __call__(self, ids: mx.array, cache: list[LayerCache] | None = None, mask: mx.array | None = None) -> mx.array:
        """Token ids [B, S] -> logits [B, S, V]; with a cache they continue what it holds.

        ``mask`` may mark padding at either end, see ``padding.from_mask``; what comes out for it means nothing.
        """
        return self.logits(self.streams(ids, cache, mask))

    def mtp_streams(
        self, streams: mx.array, next_ids: mx.array, cache: list[LayerCache] | None = None, depth: int = 0
    ) -> mx.array:
        """Final streams [B, S, n, D] and the ids one ahead [B, S] -> streams of MTP block ``depth`` (spec 11).

        ``cache`` comes from ``make_mtp_cache``.
        """
        block = self.mtp[depth]
        call, (state,) = self._call([block], next_ids, None if cache is None else cache[depth : depth + 1])
        return call.outward(block(call.inward(streams), call.inward(next_ids), self.embed, call, state))

    def mtp_head(self, streams: mx.array, depth: int = 0) -> mx.array:
        """Streams [B, S, n, D] of MTP block ``depth`` -> float32 logits of the ids two ahead [B, S, V]."""
        return self.head(norm.wide(self.mtp[depth].hidden(streams)))

    def mtp_logits(
        self, streams: mx.array, next_ids: mx.array, cache: list[LayerCache] | None = None, depth: int = 0
    ) -> mx.array:
        """``mtp_streams``, then ``mtp_head``: logits two ahead [B, S, V]."""
        return self.mtp_head(self.mtp_streams(streams, next_ids, cache, depth), depth)

    def _call(
        self,
        blocks: list[Block],
        ids: mx.array,
        cache: list[LayerCache] | None,
        mask: mx.array | None = None,
    ) -> tuple[Call, list[LayerCache | None]]:
        """Where the tokens go, and each block's state. Raises UsageError, and then nothing has changed."""
        if ids.ndim != 2:
            raise UsageError(f"Token ids have the shape {list(ids.shape)}; give [batch, tokens].")
        batch, tokens = ids.shape
        if ids.size == 0:
            raise UsageError("The prompt is empty; give at least one token.")
        if cache is not None:
            _check_cache(blocks, cache, mtp=blocks is not self.layers)
        seen = [row.offset for row in cache[0].call(batch, tokens).rows] if cache is not None else [0] * batch
        # A token that the model itself has chosen is not known yet when its call is built: to look would be to wait.
        if tokens > 1 or not any(seen):
            self._check_ids(ids)
        padded = padding.from_mask(mask, tokens, seen)
        if cache is None and padded is None:
            return Call.of(0, ids), [None] * len(blocks)
        if cache is not None:
            self._restore(cache)
        states = cache if cache is not None else _caches(blocks)
        return states[0].call(batch, tokens, padded), states

    def _restore(self, cache: list[LayerCache]):
        """Compute anew the sequences that were rewound further back than the cache holds."""
        fresh = {index: self._prefix(ids) for index, ids in cache[0].lost().items()}
        if fresh:
            for place, state in enumerate(cache):
                state.restore({index: prefix[place] for index, prefix in fresh.items()})

    def _prefix(self, ids: mx.array) -> list[LayerCache]:
        """A cache of the ids [1, n]."""
        cache = self.make_cache()
        for start in range(0, ids.shape[1], CHUNK):
            self.streams(ids[:, start : start + CHUNK], cache)
            mx.eval([state.state for state in cache])
            mx.clear_cache()
        return cache

    def _check_ids(self, ids: mx.array):
        low, high = ids.min().item(), ids.max().item()
        if low < 0 or high >= self.args.vocab_size:
            wrong = low if low < 0 else high
            raise UsageError(f"Token id {wrong} is outside the vocabulary of {self.args.vocab_size}.")

    def make_cache(self) -> list[LayerCache]:
        """One empty cache a backbone layer; together they can be rewound by any number of tokens."""
        return _caches(self.layers, placed=True)

    def make_mtp_cache(self) -> list[LayerCache]:
        """One empty cache an MTP block; past the first few tokens, REWIND can be taken back."""
        return _caches(self.mtp)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Tensors of a checkpoint of any family -> parameters of this model; see ``checkpoint.sanitize``.

        Also makes the layers whose weights are packed ready for them, unless the config has settings: then mlx-lm does.
        They are in ``packed``; in ``left_out`` is what of the checkpoint is not used, and why; each layer notes how its
        weight was stored. MTP blocks that the checkpoint lacks are dropped.
        """
        weights, packed, stored, reading = checkpoint.sanitize(weights, self.args)
        self.mtp = self.mtp[: reading.mtp_blocks]
        self.left_out = MappingProxyType(reading.left_out)
        for path, module in self.named_modules():
            if hasattr(module, "stored"):
                module.stored = stored.get(path, "float")
        self.packed = MappingProxyType(packed)
        if self.args.quantization is None:
            pack(self, packed)
        return weights

    @property
    def cast_predicate(self) -> Callable[[str], bool]:
        """Whether the parameter of a path may leave float32 (spec 2): mlx-lm asks before it casts."""
        return checkpoint.may_cast


def _caches(blocks: list[Block], placed: bool = False) -> list[LayerCache]:
    """An empty cache a block; all of them grant the same rewinds, any where they are ``placed``."""
    caches = [
        LayerCache(block.attn.window, block.attn.ratio, place=place if placed else None)
        for place, block in enumerate(blocks)
    ]
    held = min((cache.held for cache in caches), default=0)
    for cache in caches:
        cache.held = held
    return caches


def _check_cache(blocks: list[Block], cache: list[LayerCache], mtp: bool):
    """Raise UsageError unless the cache can belong to these blocks."""
    if len(cache) != len(blocks):
        raise UsageError(f"The cache has {len(cache)} entries for {len(blocks)} layers; take it from make_cache().")
    for index, (block, state) in enumerate(zip(blocks, cache, strict=True)):
        if not isinstance(state, LayerCache):
            raise UsageError(f"Entry {index} of the cache is a {type(state).__name__}; take it from make_cache().")
        if not state.fits(block.attn.window, block.attn.ratio, block.attn.dim):
            raise UsageError(f"Entry {index} of the cache belongs to a layer of another model; make a new cache.")
        if state.place != (None if mtp or cache[0].place is None else index):
            made = "make_mtp_cache()" if mtp else "one make_cache()"
            raise UsageError(f"Entry {index} of the cache was made for another place; take all from {made}.")
        if state.rows != cache[0].rows:
            raise UsageError(f"Entries 0 and {index} of the cache are at different tokens; make a new cache.")
