"""The multi-token-prediction block: final streams and next tokens in, logits of the tokens after them out (spec 11)."""

from __future__ import annotations

from torch import Tensor

from . import hyper_connection, norm
from .attention import AttentionState
from .block import Block
from .config import Config, Options
from .quantization import Linear


class MTPBlock(Block):
    """A block with its own projections, norms and head mixing; embedding and output head are the backbone's."""

    def __init__(self, config: Config, index: int, options: Options):
        super().__init__(config, config.num_hidden_layers + index, options)
        self.e_proj = Linear(config.hidden_size, config.hidden_size, options)
        self.h_proj = Linear(config.hidden_size, config.hidden_size, options)
        self.enorm = norm.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = norm.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm = norm.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hc_head = hyper_connection.HyperHead(config)

    def forward(
        self, streams: Tensor, next_ids: Tensor, embedded: Tensor, start: int = 0, state: AttentionState | None = None
    ) -> Tensor:
        """streams [B, S, n, D] before hc_head, next_ids [B, S], embedded = Embedding[next_ids] -> streams [B, S, n,
        D]."""
        drafted = self.e_proj(self.enorm(embedded))[:, :, None] + self.h_proj(self.hnorm(streams))
        return super().forward(drafted, next_ids, start, state)

    def hidden(self, streams: Tensor) -> Tensor:
        """[B, S, n, D] -> what the shared output head reads [B, S, D]."""
        return self.norm(self.hc_head(streams))
