"""Router: the experts of a token and their weights (spec 10)."""

import mlx.core as mx
import mlx.nn as nn

from . import norm
from .config import ModelArgs

FAR_BELOW = -40.0  # softplus(x) and e^x are the same number from here on, in float64 too


class Router(nn.Module):
    """Top-k of biased scores, or in the first layers a table by token id; weights are unbiased scores."""

    def __init__(self, config: ModelArgs, hashed: bool):
        super().__init__()
        self.topk, self.scoring_func = config.num_experts_per_tok, config.scoring_func
        self.route_scale, self.hashed = config.routed_scaling_factor, hashed
        self.weight = mx.zeros((config.n_routed_experts, config.hidden_size))
        if hashed:
            self.tid2eid = mx.zeros((config.vocab_size, self.topk), dtype=mx.int32)
        else:
            self.bias = mx.zeros((config.n_routed_experts,))

    def scores(self, x: mx.array) -> mx.array:
        """g(x W^T) in float32: [B, S, D] -> [B, S, E]."""
        logits = norm.wide(x) @ norm.wide(self.weight).T
        if self.scoring_func == "softmax":
            return mx.softmax(logits, axis=-1)
        if self.scoring_func == "sigmoid":
            return mx.sigmoid(logits)
        # Far below 0 softplus is e^x, whose root need not pass through what float32 cannot hold, and MLX makes 0.
        return mx.where(logits < FAR_BELOW, mx.exp(logits / 2), mx.sqrt(nn.softplus(logits)))

    def select(self, scores: mx.array, ids: mx.array) -> mx.array:
        """Scores [B, S, E] and token ids [B, S] -> experts [B, S, k]; only here does the bias count."""
        if self.hashed:
            return self.tid2eid[ids]
        ranked = mx.argpartition(-(scores + self.bias), kth=self.topk - 1, axis=-1)
        return ranked[..., : self.topk].astype(mx.int32)

    def weigh(self, scores: mx.array, experts: mx.array) -> mx.array:
        """Weights [B, S, k] of the chosen experts: sum 1 unless scores are a softmax, then scaled."""
        weights = mx.take_along_axis(scores, experts, axis=-1)
        if self.scoring_func != "softmax":
            weights = weights / weights.sum(axis=-1, keepdims=True)
        return weights * self.route_scale

    def __call__(self, x: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
        """x [B, S, D], ids [B, S] -> weights [B, S, k], experts [B, S, k]."""
        scores = self.scores(x)
        experts = self.select(scores, ids)
        return self.weigh(scores, experts), experts
