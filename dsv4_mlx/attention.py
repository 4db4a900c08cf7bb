"""Attention: a sliding window and compressed rows under one softmax with a sink (spec 6)."""

import functools

import mlx.core as mx
import mlx.nn as nn

from dsv4_checkpoints.settings import DEFAULTS

from . import norm, rope
from .cache import LayerCache
from .compressor import Compressor
from .config import OVERLAP_RATIO, ModelArgs
from .indexer import Indexer
from .norm import RMSNorm
from .positions import Call
from .quantization import KVQuant, Linear, packed_like, product, quantized_product
from .token_wise import one_token, spread, token_wise

BLOCK = 128  # queries that attend at once, at least: fewer only make more operations


@one_token
def sink_attention(q: mx.array, keys: mx.array, mask: mx.array, sink: mx.array, scale: float) -> mx.array:
    """softmax over visible keys with one extra logit a head that carries no value (spec 6.5).

    q [B, S, H, d], keys = values [B, K, d], mask [B or 1, S, K] True where visible, sink [H] -> [B, S, H, d].
    Scores and sums are wide; the result is rounded once to q's dtype. Every query must see a key.
    """
    batch, tokens, heads, dim = q.shape
    wide_keys = norm.wide(keys)
    # One key for all heads: heads fold into rows, so this is one product of (S*H, d) by (d, K).
    # The keys lie [d, K] for it: 8 GFLOP/s instead of 5.6 in the BLAS of MLX's wheel.
    scores = norm.wide(q).reshape(batch, tokens * heads, dim) @ mx.contiguous(wide_keys.swapaxes(-1, -2))
    scores = scores.reshape(batch, tokens, heads, -1) * scale
    scores = mx.where(mask[:, :, None], scores, -mx.inf)
    top = scores.max(axis=-1, keepdims=True)  # the sink takes no part in the maximum
    weights = mx.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True) + mx.exp(sink[:, None] - top)
    out = weights.reshape(batch, tokens * heads, -1) @ wide_keys
    return (out.reshape(q.shape) / total).astype(q.dtype)


def in_blocks(
    q: mx.array, keys: mx.array, mask: mx.array, sink: mx.array, scale: float, window: int, rows: int
) -> mx.array:
    """``sink_attention`` of BLOCK queries at a time, so that scores are BLOCK x (BLOCK + window + rows) a head.

    The last ``rows`` keys are compressed rows; those ahead of them are window keys, the last of which are the
    queries' own tokens. Of these a block needs its own and the ``window`` - 1 before.
    """
    tokens, size = q.shape[1], max(window, BLOCK)
    if tokens <= size:
        return sink_attention(q, keys, mask, sink, scale)
    local = keys.shape[1] - rows
    past = local - tokens

    def block(first: int) -> mx.array:
        end = min(first + size, tokens)
        near = slice(max(past + first - window + 1, 0), past + end)
        block_keys = mx.concatenate([keys[:, near], keys[:, local:]], axis=1)
        block_mask = mx.concatenate([mask[:, first:end, near], mask[:, first:end, local:]], axis=-1)
        return sink_attention(q[:, first:end], block_keys, block_mask, sink, scale)

    blocks = spread(functools.partial(block, first) for first in range(0, tokens, size))
    return mx.concatenate(blocks, axis=1)


class GroupedLinear(nn.Module):
    """o'_g = W_g o_g, W [G, Ro, H*d/G] stored as [G*Ro, H*d/G]; its input is never quantised (spec 6.6)."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.stored, self.simulate = "float", False
        self.weight = mx.zeros((groups, outputs, inputs))

    def __call__(self, x: mx.array) -> mx.array:
        """[B, S, G, H*d/G] -> [B, S, G, Ro]."""
        batch, tokens, groups, inputs = x.shape
        rows = x.reshape(batch * tokens, groups, inputs).swapaxes(0, 1)
        y = self.product(rows)
        return y.swapaxes(0, 1).reshape(batch, tokens, groups, -1)

    def product(self, rows: mx.array) -> mx.array:
        """[G, tokens, H*d/G] -> [G, tokens, Ro]."""
        return product(rows, self.weight)

    def to_quantized(self, group_size: int | None = None, bits: int | None = None, mode: str = "affine"):
        """The same layer with its weight packed, as ``mlx.nn.quantize`` asks for it."""
        return QuantizedGroupedLinear(self, group_size, bits, mode)


class QuantizedGroupedLinear(GroupedLinear):
    """``GroupedLinear`` with W packed in one of MLX's formats."""

    def __init__(self, layer: GroupedLinear, group_size: int | None, bits: int | None, mode: str):
        groups, outputs, inputs = layer.weight.shape
        super().__init__(inputs, outputs, groups)
        usual = DEFAULTS[mode]
        self.bits, self.group_size, self.mode = bits or usual[0], group_size or usual[1], mode
        packed_like(layer, self)
        self.freeze()

    def product(self, rows: mx.array) -> mx.array:
        """[G, tokens, H*d/G] -> [G, tokens, Ro]."""
        return quantized_product(rows, self)


class Attention(nn.Module):
    """One layer's attention; ``ratio`` decides its rope table and its compressed part (spec 6, 7, 9)."""

    def __init__(self, config: ModelArgs, ratio: int):
        super().__init__()
        self.heads, self.dim, self.groups = config.num_attention_heads, config.head_dim, config.o_groups
        self.window, self.ratio, self.eps = config.sliding_window, ratio, config.rms_norm_eps
        width = self.heads * self.dim
        self.wq_a = Linear(config.hidden_size, config.q_lora_rank, config)
        self.q_norm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.wq_b = Linear(config.q_lora_rank, width, config)
        self.wkv = Linear(config.hidden_size, self.dim, config)
        self.kv_norm = RMSNorm(self.dim, config.rms_norm_eps)
        self.wo_a = GroupedLinear(width // self.groups, config.o_lora_rank, self.groups)
        self.wo_b = Linear(self.groups * config.o_lora_rank, config.hidden_size, config)
        self.attn_sink = mx.zeros((self.heads,))
        self.kv_quant = KVQuant(config)
        if ratio:
            self.compressor = Compressor(config, self.dim, ratio, KVQuant(config))
        if ratio == OVERLAP_RATIO:
            self.indexer = Indexer(config)
        self._frequencies = rope.inverse_frequencies(config, ratio)  # underscore: no parameter of the tree

    @token_wise
    def queries(self, x: mx.array, positions: mx.array) -> tuple[mx.array, mx.array]:
        """x [B, S, D] -> the normed latent [B, S, Rq] and the rotated queries [B, S, H, d] (spec 6.2).

        The latent is the indexer's input too.
        """
        qr = self.q_norm(self.wq_a(x))
        q = self.wq_b(qr).reshape(*x.shape[:-1], self.heads, self.dim)
        q = norm.rms_norm(q, None, self.eps)
        return qr, rope.rotate(q, positions, self._frequencies)

    @token_wise
    def window_kv(self, x: mx.array, positions: mx.array) -> mx.array:
        """x [B, S, D] -> the vector that is key and value of each token [B, S, d] (spec 6.3)."""
        kv = self.kv_norm(self.wkv(x))
        return self.kv_quant(rope.rotate(kv, positions, self._frequencies))

    @token_wise
    def output(self, o: mx.array, positions: mx.array) -> mx.array:
        """o [B, S, H, d] -> [B, S, D]: turn back by the query's position, then two projections (spec 6.6)."""
        o = rope.rotate(o, positions, self._frequencies, inverse=True)
        o = o.reshape(*o.shape[:2], self.groups, -1)
        return self.wo_b(self.wo_a(o).flatten(-2))

    def __call__(self, x: mx.array, start: int | Call = 0, state: LayerCache | None = None) -> mx.array:
        """Normed x [B, S, D] at positions ``start``... -> [B, S, D]; ``state`` carries the past."""
        call = Call.of(start, x)
        positions = call.positions
        qr, q = self.queries(x, positions)
        keys, mask = self._window_part(self.window_kv(x, positions), call, state)
        local = keys.shape[1]
        if self.ratio:
            rows, seen = self._compressed_part(x, qr, call, state)
            keys = mx.concatenate([keys, rows], axis=1)
            mask = mx.broadcast_to(mask, (seen.shape[0], *mask.shape[1:]))
            mask = mx.concatenate([mask, seen], axis=-1)
            if state is not None:
                keys = mx.depends(keys, state.unread())
        rows = keys.shape[1] - local
        o = in_blocks(q, keys, mask, self.attn_sink, self.dim**-0.5, self.window, rows)
        if state is not None:
            state.advance(call)
        return self.output(o, positions)

    def _window_part(self, kv: mx.array, call: Call, state: LayerCache | None) -> tuple[mx.array, mx.array]:
        """Window keys [B, K, d] and their mask [1 or B, S, K]: position p sees p - W + 1 ... p (spec 6.4)."""
        if state is None:
            return kv, call.once(("window", self.window), lambda: self._window_mask(call, 0, state))
        if call.tokens == 1:
            ring = state.ring.write(kv, call)
            return ring, call.once(("ring", self.window), lambda: self._ring_mask(call, state))
        count = min(max(call.starts), self.window - 1)
        past = state.ring.before(count, call) if count else kv[:, :0]
        state.ring.write(kv, call)
        mask = call.once(("window", self.window), lambda: self._window_mask(call, count, state))
        return mx.concatenate([past, kv], axis=1), mask

    def _window_mask(self, call: Call, count: int, state: LayerCache | None) -> mx.array:
        """For keys of ``count`` positions ahead of the call and of the call itself: [1 or B, S, count + S]."""
        query_at = call.positions[..., None]
        key_at = call.positions[..., None, :1] + mx.arange(-count, call.tokens)
        mask = (key_at <= query_at) & (key_at > query_at - self.window) & (key_at >= 0)
        return mask if mask.ndim == 3 else mask[None]

    def _ring_mask(self, call: Call, state: LayerCache) -> mx.array:
        """For one token and the ring as it lies, [1 or B, 1, slots]: which slots hold its window's positions."""
        query_at = call.positions[..., None]
        age = (query_at - mx.arange(state.ring.size)) % state.ring.size
        mask = (age < self.window) & (age <= query_at)
        return mask if mask.ndim == 3 else mask[None]

    def _compressed_part(self, x, qr, call: Call, state: LayerCache | None) -> tuple[mx.array, mx.array]:
        """Compressed keys, mask [1 or B, S, rows] (spec 6.4); one token gathers rows, many mask the pool."""
        pool = self.compressor(x, call, self._frequencies, state and state.compressed)
        total = pool.shape[1]
        if self.ratio != OVERLAP_RATIO:
            return pool, call.once(("rows", self.ratio), lambda: self._rows_mask(call, total, state))
        chosen = self.indexer(x, qr, call, self._frequencies, state and state.indexed)
        if call.tokens == 1:
            picked = mx.take_along_axis(pool, mx.maximum(chosen, 0).swapaxes(1, 2), axis=1)
            return picked, chosen >= 0
        mask = mx.zeros((*chosen.shape[:2], total + 1), dtype=mx.bool_)
        # "None" (-1) lands in one column too many, which is cut off.
        mask = mx.put_along_axis(mask, mx.where(chosen < 0, total, chosen), mx.array(True), axis=-1)
        return pool, mask[..., :total]

    def _rows_mask(self, call: Call, total: int, state: LayerCache | None) -> mx.array:
        """[1 or B, S, total]: a row is seen from its block's last token on."""
        visible = (call.positions + 1) // self.ratio
        mask = mx.arange(total) < visible[..., None]
        return mask if mask.ndim == 3 else mask[None]
