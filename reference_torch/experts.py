"""Experts with the asymmetric SwiGLU clamp, the shared expert, and their sum (spec 10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import router
from .config import Config, Options
from .norm import wide
from .quantization import Linear


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """silu(min(gate, L)) * clamp(up, -L, L): the gate is clamped from above only; limit 0 clamps nothing. All wide."""
    if limit > 0:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return F.silu(gate) * up


class Expert(nn.Module):
    """w1 (gate) and w3 (up) [I, D], w2 (down) [D, I]."""

    def __init__(self, config: Config, options: Options, limit: float):
        super().__init__()
        self.limit = limit
        self.w1 = Linear(config.hidden_size, config.moe_intermediate_size, options)
        self.w2 = Linear(config.moe_intermediate_size, config.hidden_size, options)
        self.w3 = Linear(config.hidden_size, config.moe_intermediate_size, options)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """x [..., D] -> [..., D]; a routing weight [..., 1] multiplies the hidden state before w2."""
        hidden = swiglu(wide(self.w1(x)), wide(self.w3(x)), self.limit)
        if weight is not None:
            hidden = weight * hidden
        return self.w2(hidden.to(x.dtype))


class MoE(nn.Module):
    """Routed experts summed wide in increasing index, then the shared expert, one rounding at the end (spec 10)."""

    def __init__(self, config: Config, layer: int, options: Options):
        super().__init__()
        self.gate = router.Router(config, layer)
        self.experts = nn.ModuleList(
            Expert(config, options, config.swiglu_limit) for _ in range(config.n_routed_experts)
        )
        self.shared_experts = Expert(config, options, config.swiglu_limit if options.shared_expert_clamp else 0.0)

    def routed(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """x [B, S, D], weights and experts [B, S, k] -> the experts' weighted sum [B, S, D], wide."""
        flat, weights, experts = x.flatten(0, 1), weights.flatten(0, 1), experts.flatten(0, 1)
        total = torch.zeros_like(wide(flat))
        for index in experts.unique().tolist():
            token, slot = (experts == index).nonzero(as_tuple=True)
            total.index_add_(0, token, wide(self.experts[index](flat[token], weights[token, slot, None])))
        return total.view_as(x)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """x [B, S, D], ids [B, S] -> [B, S, D]."""
        weights, experts = self.gate(x, ids)
        return (self.routed(x, weights, experts) + wide(self.shared_experts(x))).to(x.dtype)
