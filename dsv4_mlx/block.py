"""Block: attention, then experts, each between the two halves of a hyper-connection (spec 3)."""

import mlx.core as mx
import mlx.nn as nn

from .attention import Attention
from .cache import LayerCache
from .config import ModelArgs
from .experts import MoE
from .hyper_connection import HyperConnection
from .norm import RMSNorm
from .positions import Call
from .token_wise import token_wise


class Block(nn.Module):
    """Layer ``index``; MTP block m is layer num_hidden_layers + m."""

    def __init__(self, config: ModelArgs, index: int):
        super().__init__()
        self.hc_attn = HyperConnection(config)
        self.hc_ffn = HyperConnection(config)
        self.attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = Attention(config, config.compress_ratios[index])
        self.ffn = MoE(config, hashed=index < config.num_hash_layers)

    def __call__(
        self, streams: mx.array, ids: mx.array, start: int | Call = 0, state: LayerCache | None = None
    ) -> mx.array:
        """streams [B, S, n, D] and ids [B, S] at positions ``start``... -> streams [B, S, n, D]."""
        x, post, comb = self.before_attention(streams)
        return self.after_attention(self.attn(x, start, state), streams, post, comb, ids)

    @token_wise
    def before_attention(self, streams: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """streams [B, S, n, D] -> what the attention reads [B, S, D], post [B, S, n], comb [B, S, n, n]."""
        x, post, comb = self.hc_attn.pre(streams)
        return self.attn_norm(x), post, comb

    @token_wise
    def after_attention(
        self, v: mx.array, streams: mx.array, post: mx.array, comb: mx.array, ids: mx.array
    ) -> mx.array:
        """What the attention gave [B, S, D], and what was there before it -> streams [B, S, n, D]."""
        streams = self.hc_attn.post(v, streams, post, comb)
        x, post, comb = self.hc_ffn.pre(streams)
        return self.hc_ffn.post(self.ffn(self.ffn_norm(x), ids), streams, post, comb)
