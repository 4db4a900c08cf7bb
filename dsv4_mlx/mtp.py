"""Multi-token prediction: one more block, on the final streams and the next token (spec 11)."""

from collections.abc import Callable

import mlx.core as mx

from .block import Block
from .cache import LayerCache
from .config import ModelArgs
from .hyper_connection import HyperHead
from .norm import RMSNorm
from .positions import Call
from .quantization import Linear


class MTPBlock(Block):
    """Block m of prefix ``mtp.m``; embedding and head are the backbone's."""

    def __init__(self, config: ModelArgs, depth: int):
        super().__init__(config, config.num_hidden_layers + depth)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.e_proj = Linear(size, size, config)
        self.h_proj = Linear(size, size, config)
        self.enorm = RMSNorm(size, eps)
        self.hnorm = RMSNorm(size, eps)
        self.norm = RMSNorm(size, eps)
        self.hc_head = HyperHead(config)

    def __call__(
        self,
        streams: mx.array,
        next_ids: mx.array,
        embed: Callable[[mx.array], mx.array],
        start: int | Call = 0,
        state: LayerCache | None = None,
    ) -> mx.array:
        """streams [B, S, n, D] before hc_head and the id after each token [B, S] -> streams [B, S, n, D]."""
        token = self.e_proj(self.enorm(embed(next_ids)))
        streams = token[:, :, None] + self.h_proj(self.hnorm(streams))
        return super().__call__(streams, next_ids, start, state)

    def hidden(self, streams: mx.array) -> mx.array:
        """What the shared head reads: norm(hc_head(streams)), [B, S, n, D] -> [B, S, D]."""
        return self.norm(self.hc_head(streams))
