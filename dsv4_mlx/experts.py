"""Routed and shared SwiGLU experts, and their sum (spec 10)."""

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import SwitchLinear

from . import norm, quantization
from .config import ModelArgs
from .quantization import Linear
from .router import Router


def swiglu(gate: mx.array, up: mx.array, limit: float) -> mx.array:
    """silu(gate) * up, clamped first if limit > 0: up on both sides, gate only from above (spec 10)."""
    if limit > 0:
        up = mx.clip(up, -limit, limit)
        gate = mx.minimum(gate, limit)
    return gate * mx.sigmoid(gate) * up


class ExpertLinear(SwitchLinear):
    """One matrix an expert, [E, out, in], chosen by index; rounds as ``quantization.Linear`` does."""

    def __init__(self, inputs: int, outputs: int, config: ModelArgs):
        super().__init__(inputs, outputs, config.n_routed_experts, bias=False)
        self.stored = "float"
        self.simulate = config.quantization_simulation == "published"

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """x [..., 1, in], experts [...] -> [..., 1, out]."""
        weight = self.weight
        seen = quantization.linear_input(x, self)
        if mx.default_device() == mx.cpu:  # where gather_mm knows float32 only
            seen, weight = norm.wide(seen), norm.wide(weight)
        y = mx.gather_mm(seen, weight.swapaxes(-1, -2), rhs_indices=indices, sorted_indices=sorted_indices)
        return y.astype(x.dtype)


class SwitchExperts(nn.Module):
    """The routed experts: w1 gate, w2 down, w3 up, stacked over experts."""

    def __init__(self, config: ModelArgs):
        super().__init__()
        self.limit = config.swiglu_limit
        self.w1 = ExpertLinear(config.hidden_size, config.moe_intermediate_size, config)
        self.w2 = ExpertLinear(config.moe_intermediate_size, config.hidden_size, config)
        self.w3 = ExpertLinear(config.hidden_size, config.moe_intermediate_size, config)

    def __call__(self, x: mx.array, weights: mx.array, experts: mx.array) -> mx.array:
        """x [B, S, D], weights and experts [B, S, k] -> each expert's weighted output [B, S, k, D]."""
        rows = x[:, :, None, None]
        hidden = swiglu(norm.wide(self.w1(rows, experts)), norm.wide(self.w3(rows, experts)), self.limit)
        hidden = (weights[..., None, None] * hidden).astype(x.dtype)  # the weight enters before w2
        return self.w2(hidden, experts).squeeze(-2)


class SharedExpert(nn.Module):
    """The expert of every token; its clamp came with the revision of 2026-04-27 (spec 0)."""

    def __init__(self, config: ModelArgs):
        super().__init__()
        self.limit = config.swiglu_limit if config.shared_expert_clamp else 0.0
        self.w1 = Linear(config.hidden_size, config.moe_intermediate_size, config)
        self.w2 = Linear(config.moe_intermediate_size, config.hidden_size, config)
        self.w3 = Linear(config.hidden_size, config.moe_intermediate_size, config)

    def __call__(self, x: mx.array) -> mx.array:
        """[B, S, D] -> [B, S, D]."""
        hidden = swiglu(norm.wide(self.w1(x)), norm.wide(self.w3(x)), self.limit)
        return self.w2(hidden.astype(x.dtype))


class MoE(nn.Module):
    """Weighted routed experts plus the shared one, summed in float32 and rounded once (spec 10)."""

    def __init__(self, config: ModelArgs, hashed: bool):
        super().__init__()
        self.gate = Router(config, hashed)
        self.experts = SwitchExperts(config)
        self.shared_experts = SharedExpert(config)

    def routed(self, x: mx.array, weights: mx.array, experts: mx.array) -> mx.array:
        """x [B, S, D], weights and experts [B, S, k] -> the experts' weighted sum [B, S, D], wide."""
        return norm.wide(self.experts(x, weights, experts)).sum(axis=-2)

    def __call__(self, x: mx.array, ids: mx.array) -> mx.array:
        """x [B, S, D], token ids [B, S] -> [B, S, D]."""
        weights, experts = self.gate(x, ids)
        return (self.routed(x, weights, experts) + norm.wide(self.shared_experts(x))).astype(x.dtype)
