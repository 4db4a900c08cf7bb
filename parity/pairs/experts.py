"""Experts with the asymmetric clamp, the shared expert in both revisions, and the mixture of them."""

import torch

from ..cases.strategies import cases
from . import Pair
from .compressor import token_inputs

# Most examples reach the SwiGLU limit; none the magnitude at which a router's scores vanish.
BEYOND_LIMIT = (1.0, 10.0, 5.0, 10.0, 1e-2)


def routed_inputs(case, dtype):
    """Given weights and distinct experts, so that no router decides."""
    shape, k = (case.batch, case.tokens), case.config["num_experts_per_tok"]
    experts = torch.rand(*shape, case.config["n_routed_experts"], generator=case.random("experts")).argsort(-1)[..., :k]
    return token_inputs(case, dtype) | {
        "weights": case.floats("weights", *shape, k, dtype="float32", scale=1.0).abs(),
        "experts": experts,
    }


def routed(side, case, given):
    ffn = side.model.layers[0].ffn
    weights, experts = side.wide_array(given["weights"]), side.integers(given["experts"])
    return {"y": side.tensor(ffn.routed(side.array(given["x"]), weights, experts))}


def shared(side, case, given):
    return {"y": side.tensor(side.model.layers[0].ffn.shared_experts(side.array(given["x"])))}


def mixture(side, case, given):
    return {"y": side.tensor(side.model.layers[0].ffn(side.array(given["x"]), side.integers(case.ids())))}


PAIRS = (
    Pair(
        name="experts.routed",
        title="routed experts, asymmetric SwiGLU clamp",
        spec="10",
        cases=lambda profile: cases(profile, incremental=False, scales=BEYOND_LIMIT),
        inputs=routed_inputs,
        compute=routed,
    ),
    Pair(
        name="experts.shared",
        title="shared expert, clamped or not by revision",
        spec="10",
        cases=lambda profile: cases(profile, incremental=False, scales=BEYOND_LIMIT),
        inputs=token_inputs,
        compute=shared,
    ),
    Pair(
        name="moe",
        title="mixture of experts",
        spec="10",
        cases=lambda profile: cases(profile, incremental=False, scales=BEYOND_LIMIT),
        inputs=token_inputs,
        compute=mixture,
        contains=("router", "experts.routed", "experts.shared"),
    ),
)
