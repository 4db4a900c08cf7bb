"""Routed and shared SwiGLU experts, and their sum (spec 10)."""

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from . import norm, quantization
from .config import ModelArgs
from .quantization import Linear, packed_like
from .router import Router

GROUPED_FROM = 64  # choices of experts in a call, as in mlx-lm


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
        weight = self.weight.swapaxes(-1, -2)
        seen = quantization.linear_input(x, self)
        if mx.default_device() == mx.cpu and weight.dtype != mx.float32:  # which gather_mm does not know there
            seen = norm.wide(seen)
            if indices.size < len(weight):  # a decode step widens the matrices that it reads, not all
                return (seen @ norm.wide(weight[indices])).astype(x.dtype)
            weight = norm.wide(weight)
        y = mx.gather_mm(seen, weight, rhs_indices=indices, sorted_indices=sorted_indices)
        return y.astype(x.dtype)

    def to_quantized(self, group_size: int | None = None, bits: int | None = None, mode: str = "affine"):
        """The same layer with its weights packed, as ``mlx.nn.quantize`` asks for it."""
        experts, outputs, inputs = self.weight.shape
        return packed_like(self, QuantizedExpertLinear(inputs, outputs, experts, False, group_size, bits, mode))


class QuantizedExpertLinear(QuantizedSwitchLinear):
    """``ExpertLinear`` with its weights packed in one of MLX's formats."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """x [..., 1, in], experts [...] -> [..., 1, out]."""
        y = mx.gather_qmm(
            quantization.quantized_input(quantization.linear_input(x, self)),
            self.weight,
            self.scales,
            self.get("biases"),
            rhs_indices=indices,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
            sorted_indices=sorted_indices,
        )
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
        rows, shape = x[:, :, None, None], experts.shape
        grouped = experts.size >= GROUPED_FROM
        if grouped:  # the rows of an expert lie together, so that its matrix is read once
            order = mx.argsort(experts.flatten())
            rows = x.flatten(0, 1)[order // shape[-1]][:, None]
            experts, weights = experts.flatten()[order], weights.flatten()[order]
        hidden = swiglu(
            norm.wide(self.w1(rows, experts, grouped)), norm.wide(self.w3(rows, experts, grouped)), self.limit
        )
        hidden = (weights[..., None, None] * hidden).astype(x.dtype)  # the weight enters before w2
        y = self.w2(hidden, experts, grouped).squeeze(-2)
        return y[mx.argsort(order)].reshape(*shape, -1) if grouped else y


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
