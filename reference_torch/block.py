"""A block: attention, then the mixture of experts, each between the two mixings of its hyper-connection (spec 3)."""

from __future__ import annotations

from torch import Tensor, nn

from . import attention, experts, hyper_connection, norm
from .config import Config, Options


class Block(nn.Module):
    """Layer `layer` of the backbone, or MTP block m as layer num_hidden_layers + m."""

    def __init__(self, config: Config, layer: int, options: Options):
        super().__init__()
        self.hc_attn = hyper_connection.HyperConnection(config)
        self.attn_norm = norm.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = attention.Attention(config, config.ratio(layer), options)
        self.hc_ffn = hyper_connection.HyperConnection(config)
        self.ffn_norm = norm.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn = experts.MoE(config, layer, options)

    def forward(
        self, streams: Tensor, ids: Tensor, start: int = 0, state: attention.AttentionState | None = None
    ) -> Tensor:
        """streams [B, S, n, D], ids [B, S] -> [B, S, n, D]."""
        u, post, comb = self.hc_attn.pre(streams)
        streams = self.hc_attn.post(self.attn(self.attn_norm(u), start, state), streams, post, comb)
        u, post, comb = self.hc_ffn.pre(streams)
        return self.hc_ffn.post(self.ffn(self.ffn_norm(u), ids), streams, post, comb)
