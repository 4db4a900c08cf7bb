"""The indexer of ratio-4 layers: which compressed rows each query attends to (spec 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import rope
from .compressor import Compressor, CompressorState
from .config import Config, Options
from .norm import wide
from .quantization import IndexQuant, Linear


class Indexer(nn.Module):
    """Scores of all rows by small heads of their own, and the top-k of them (spec 9)."""

    def __init__(self, config: Config, ratio: int, options: Options):
        super().__init__()
        self.heads, self.dim, self.topk, self.ratio = (
            config.index_n_heads,
            config.index_head_dim,
            config.index_topk,
            ratio,
        )
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.dim, options)
        self.weights_proj = Linear(config.hidden_size, self.heads, options)
        self.quant = IndexQuant(options)
        self.compressor = Compressor(config, self.dim, ratio, IndexQuant(options))

    def queries(self, qr: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
        """qr [B, S, Rq], the normed latent of the attention's queries -> [B, S, HI, dI]; no per-head norm."""
        q = self.wq_b(qr).unflatten(-1, (self.heads, self.dim))
        return self.quant(rope.rotate(q, positions, frequencies))

    def scores(self, x: Tensor, q: Tensor, keys: Tensor) -> Tensor:
        """score_ts = sum_h w_th ReLU(<q_th, k_s>), each step rounded to x.dtype as published (spec 9).

        x [B, S, D], q [B, S, HI, dI], keys [B, R, dI] -> [B, S, R].
        """
        weights = self.weights_proj(x) * (self.dim**-0.5 * self.heads**-0.5)
        dots = torch.einsum("bshd,brd->bshr", wide(q), wide(keys)).to(x.dtype).relu()
        return wide(dots * weights[..., None]).sum(2).to(x.dtype)

    def select(self, scores: Tensor, visible: Tensor) -> Tensor:
        """The rows of the k best scores among the first `visible` of each query, -1 where fewer are visible.

        scores [B, S, R], visible [S] or [B, S] -> [B, S, min(topk, R)].
        """
        hidden = torch.arange(scores.shape[-1]) >= visible[..., None]
        masked = scores.masked_fill(hidden, -torch.inf)
        best, rows = masked.topk(min(self.topk, scores.shape[-1]), dim=-1)
        return rows.masked_fill(best == -torch.inf, -1)

    def forward(
        self, x: Tensor, qr: Tensor, start: int, frequencies: Tensor, state: CompressorState | None = None
    ) -> Tensor:
        """The rows that each query of x [B, S, D] attends to -> [B, S, k], -1 for none; the order carries no
        meaning."""
        positions = torch.arange(start, start + x.shape[1])
        keys = self.compressor(x, start, frequencies, state)
        return self.select(
            self.scores(x, self.queries(qr, positions, frequencies), keys), (positions + 1) // self.ratio
        )
