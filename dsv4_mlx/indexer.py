"""Indexer: which compressed rows a query of a ratio-4 layer attends to (spec 9)."""

import functools

import mlx.core as mx
import mlx.nn as nn

from . import norm, rope
from .compressor import Compressor
from .config import OVERLAP_RATIO, ModelArgs
from .pool import Pool
from .positions import Call
from .quantization import IndexQuant, Linear
from .token_wise import spread, token_wise

BLOCK = 128  # queries that are scored at once


class Indexer(nn.Module):
    """Small multi-head scores over its own compressed keys; the best ``index_topk`` rows are kept."""

    def __init__(self, config: ModelArgs):
        super().__init__()
        self.heads, self.dim, self.topk = config.index_n_heads, config.index_head_dim, config.index_topk
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.dim, config)
        self.weights_proj = Linear(config.hidden_size, self.heads, config)
        self.quant = IndexQuant(config)
        self.compressor = Compressor(config, self.dim, OVERLAP_RATIO, IndexQuant(config))

    @token_wise
    def queries(self, qr: mx.array, positions: mx.array, frequencies: mx.array) -> mx.array:
        """Normed query latent [B, S, Rq] -> rotated, quantised queries [B, S, HI, dI]; no norm a head."""
        q = self.wq_b(qr).reshape(*qr.shape[:-1], self.heads, self.dim)
        return self.quant(rope.rotate(q, positions, frequencies))

    def scores(self, x: mx.array, q: mx.array, keys: mx.array) -> mx.array:
        """sum_h w_h ReLU(<q_h, k_s>), computed wide: x [B, S, D], keys [B, R, dI] -> [B, S, R]."""
        weights = norm.wide(self.weights_proj(x)) * (self.dim**-0.5 * self.heads**-0.5)
        columns = mx.contiguous(norm.wide(keys).swapaxes(-1, -2))  # [B, dI, R], as a Pool holds it: see sink_attention
        blocks = range(0, q.shape[1], BLOCK)
        part = lambda i: self._block(weights[:, i : i + BLOCK], q[:, i : i + BLOCK], columns)  # noqa: E731
        parts = spread(functools.partial(part, i) for i in blocks)
        return mx.concatenate(parts, axis=1)

    def _block(self, weights: mx.array, q: mx.array, columns: mx.array) -> mx.array:
        """Scores of some queries: products of all heads are held for these alone."""
        batch, tokens, heads, dim = q.shape
        products = norm.wide(q).reshape(batch, tokens * heads, dim) @ columns
        products = mx.maximum(products, 0).reshape(batch, tokens, heads, -1)
        return (weights[..., None, :] @ products).squeeze(-2)

    def select(self, scores: mx.array, visible: mx.array) -> mx.array:
        """The best of each query's first ``visible`` rows, in no order; -1 where there are fewer (spec 9).

        scores [B, S, R], visible [S] or [B, S] -> [B, S, min(topk, R)] int32.
        """
        total = scores.shape[-1]
        allowed = mx.arange(total) < visible[..., None]
        kept = min(self.topk, total)
        if kept == total:
            rows = mx.broadcast_to(mx.arange(total), scores.shape)
        else:
            ranked = mx.argpartition(mx.where(allowed, -scores, mx.inf), kth=kept - 1, axis=-1)
            rows = ranked[..., :kept].astype(mx.int32)
        return mx.where(rows < visible[..., None], rows, -1)

    def __call__(
        self, x: mx.array, qr: mx.array, start: int | Call, frequencies: mx.array, state: Pool | None = None
    ) -> mx.array:
        """x [B, S, D], qr [B, S, Rq] at positions ``start``... -> selected rows [B, S, k], -1 for none."""
        call = Call.of(start, x)
        positions = call.positions
        keys = self.compressor(x, call, frequencies, state)
        q = self.queries(qr, positions, frequencies)
        return self.select(self.scores(x, q, keys), (positions + 1) // OVERLAP_RATIO)
