"""Compressor: r tokens become one key-value row by a gated sum a channel (spec 7)."""

import mlx.core as mx
import mlx.nn as nn

from . import norm, rope
from .config import OVERLAP_RATIO, ModelArgs
from .norm import RMSNorm
from .pool import Pool
from .positions import Call
from .quantization import Linear
from .token_wise import token_wise


class Compressor(nn.Module):
    """Rows of ``dim`` channels, one for each complete block of ``ratio`` tokens.

    With overlap the projections are twice as wide: channels [0:dim) serve the next block's row, channels
    [dim:2*dim) the token's own. ``quant`` rounds finished rows (spec 6.3, 9).
    """

    def __init__(self, config: ModelArgs, dim: int, ratio: int, quant: nn.Module):
        super().__init__()
        self.dim, self.ratio, self.overlap = dim, ratio, ratio == OVERLAP_RATIO
        width = 2 * dim if self.overlap else dim
        self.wkv = Linear(config.hidden_size, width, config)
        self.wgate = Linear(config.hidden_size, width, config)
        self.ape = mx.zeros((ratio, width))
        self.norm = RMSNorm(dim, config.rms_norm_eps)
        self.quant = quant

    @token_wise
    def project(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """K and Z of each token, in true float32: [B, S, D] -> twice [B, S, dim or 2*dim], Z without ape."""
        return self.wkv(norm.wide(x)), self.wgate(norm.wide(x))

    def pool(self, kv: mx.array, gate: mx.array, before: tuple[mx.array, mx.array] | None = None) -> mx.array:
        """Rows of the complete blocks, before rounding and norm: [B, T, width] -> [B, T//r, dim] (spec 7).

        Token 0 starts a block, so a token's place in its block is its position mod r: ape is added by it.
        ``before`` is the block ahead of the first one, K and Z without ape [B, r, width]; None at the start.
        """
        batch, tokens, width = kv.shape
        blocks = tokens // self.ratio
        shape = (batch, blocks, self.ratio, width)
        kv = kv[:, : blocks * self.ratio].reshape(shape)
        gate = gate[:, : blocks * self.ratio].reshape(shape) + self.ape
        if self.overlap:
            kv, gate = self._with_block_before(kv, gate, before)
        return (mx.softmax(gate, axis=2) * kv).sum(axis=2)

    def _with_block_before(self, kv, gate, before):
        """[B, N, r, 2*dim] -> [B, N, 2r, dim]: r candidates of the block before, r of the block itself."""
        if before is None:  # nothing precedes position 0: weight exactly 0
            first_kv = mx.zeros_like(kv[:, :1])
            first_gate = mx.full(first_kv.shape, -mx.inf, dtype=gate.dtype)
        else:
            first_kv, first_gate = before[0][:, None], before[1][:, None] + self.ape
        last_kv = mx.concatenate([first_kv, kv[:, :-1]], axis=1)[..., : self.dim]
        last_gate = mx.concatenate([first_gate, gate[:, :-1]], axis=1)[..., : self.dim]
        kv = mx.concatenate([last_kv, kv[..., self.dim :]], axis=2)
        gate = mx.concatenate([last_gate, gate[..., self.dim :]], axis=2)
        return kv, gate

    def finish(self, rows: mx.array, first: int | mx.array, frequencies: mx.array, dtype: mx.Dtype) -> mx.array:
        """Pooled rows -> keys: round, norm, rotate by each block's first position, quantise (spec 7).

        ``first`` is the index of rows[:, 0], [B, 1] where sequences differ.
        """
        positions = self.ratio * (first + mx.arange(rows.shape[1]))
        rows = rope.rotate(self.norm(rows.astype(dtype)), positions, frequencies)
        return self.quant(rows)

    def __call__(self, x: mx.array, start: int | Call, frequencies: mx.array, state: Pool | None = None) -> mx.array:
        """Tokens x [B, S, D] at positions ``start``... -> all rows so far [B, R, dim] (spec 7.1)."""
        kv, gate = self.project(x)
        if state is None:
            return self.finish(self.pool(kv, gate), 0, frequencies, x.dtype)
        call = Call.of(start, x)
        blocks = state.push(kv, gate, call)
        if blocks is not None:
            rows = self.pool(blocks.kv, blocks.gate, blocks.before)
            state.write(self.finish(rows, blocks.first, frequencies, x.dtype), call)
        return state.rows(call, x, self.dim)
