"""The router: scores of the experts, the choice by score or by token id, and the weights (spec 10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config
from .norm import wide

FAR_BELOW = -40.0  # softplus(x) and e^x are the same number from here on, in float64 too


def score(logits: Tensor, scoring_func: str) -> Tensor:
    """g(logits): sqrt(softplus), sigmoid, or softmax over the experts. [..., E] -> [..., E]."""
    if scoring_func == "softmax":
        return logits.softmax(-1)
    if scoring_func == "sigmoid":
        return torch.sigmoid(logits)
    # Far below 0 softplus is e^x, whose root need not pass through what float32 cannot hold.
    return torch.where(logits < FAR_BELOW, (logits / 2).exp(), F.softplus(logits).sqrt())


class Router(nn.Module):
    """weight [E, D]; a bias [E] for the selection only, or a table tid2eid [V, k] in hash-routed layers (spec 10)."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.config = config
        self.hashed = config.is_hash_routed(layer)
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        if self.hashed:
            table = torch.empty(config.vocab_size, config.num_experts_per_tok, dtype=torch.int64)
            self.tid2eid = nn.Parameter(table, requires_grad=False)
        else:
            self.bias = nn.Parameter(torch.empty(config.n_routed_experts))

    def scores(self, x: Tensor) -> Tensor:
        """x [B, S, D] -> [B, S, E], wide."""
        return score(F.linear(wide(x), wide(self.weight)), self.config.scoring_func)

    def select(self, scores: Tensor, ids: Tensor) -> Tensor:
        """The k experts of each token: by table, or by score plus bias. scores [B, S, E], ids [B, S] -> [B, S, k]."""
        if self.hashed:
            return self.tid2eid[ids]
        return (scores + wide(self.bias)).topk(self.config.num_experts_per_tok, dim=-1)[1]

    def weigh(self, scores: Tensor, experts: Tensor) -> Tensor:
        """Unbiased scores of the chosen, normalised to sum 1 (not for softmax), times the scale. -> [B, S, k], wide."""
        weights = scores.gather(-1, experts)
        if self.config.scoring_func != "softmax":
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * self.config.routed_scaling_factor

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, S, D], ids [B, S] -> weights [B, S, k] and experts [B, S, k]."""
        scores = self.scores(x)
        experts = self.select(scores, ids)
        return self.weigh(scores, experts), experts
