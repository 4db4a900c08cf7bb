"""The shared expert, the router, the routed experts, and the clamps."""

from functools import partial

import torch

from . import Probe
from .weights import EMBEDDED, Weights, config

SHORT = {"tokens": 24, "prompt": 17, "chunks": (7, 1, 9, 7)}
GATES = r".*\.ffn\..*\.w[13]\.weight"


def shared(weights: Weights, gain: float) -> None:
    """The shared expert alone, its pre-activations `gain` times the usual."""
    weights.mute_routed()
    weights.only_experts()
    weights.scale(GATES, gain)


def routed(weights: Weights, gain: float, bias: float) -> None:
    """The shared expert stays on: beside it, the scale of the routed ones shows."""
    weights.only_experts()
    weights.scale(GATES, gain)
    if not weights.config["num_hash_layers"]:
        weights.scale(r".*\.gate\.bias", bias)
    weights.scale(r".*\.shared_experts\.w2\.weight", 2.0)


def overflowing(weights: Weights) -> None:
    """One expert's logits lie around 200 or -200: e^200 is more than float32 holds."""
    routed(weights, gain=0.3, bias=0.0)
    weights.change(r".*\.gate\.weight", lambda x: torch.cat((x[:1] * 100, x[1:])))


def underflowing(weights: Weights) -> None:
    """The logits of every expert lie around -5 for half of the tokens, around -21 for the others: 1 + e^-21 is 1 in
    float32."""
    routed(weights, gain=0.3, bias=0.0)
    constant = torch.tensor([1.0, 4.0]).repeat(weights.config["vocab_size"] // 2) * EMBEDDED
    weights.change("embed.weight", lambda x: torch.cat((constant[:, None], x[:, 1:]), dim=1))
    weights.fill(r".*\.ffn_norm\.weight", 1.0)
    weights.change(r".*\.gate\.weight", lambda x: torch.cat((torch.full_like(x[:, :1], -6.4), 0.1 * x[:, 1:]), dim=1))


def clamped(weights: Weights) -> None:
    """Every routed pre-activation lies beyond the limit for many tokens, the shared ones within it."""
    routed(weights, 1.0, 1.0)
    weights.scale(r".*\.experts\.\d+\.w[13]\.weight", 8.0)
    weights.scale(r".*\.shared_experts\.w[13]\.weight", 0.3)
    weights.change(r".*\.shared_experts\.w2\.weight", lambda x: x * torch.tensor(30.0))


# All experts would be a choice that no published model makes, and at which `argpartition(kth=k)` raises.
NEARLY_ALL = {"n_routed_experts": 7, "num_experts_per_tok": 6}

PROBES = (
    Probe(
        "experts.shared",
        "the shared expert, below the clamp",
        "10",
        config(0),
        partial(shared, gain=0.3),
        needs=("embedding",),
        **SHORT,
    ),
    Probe(
        "experts.shared_clamp",
        "the shared expert's clamp (revisions since 2026-04-27)",
        "0, 10",
        config(0),
        partial(shared, gain=8.0),
        needs=("experts.shared",),
        **SHORT,
    ),
    Probe(
        "router.scores",
        "score function, normalisation and scale of the routing weights, nearly every expert active",
        "10",
        config(0, **NEARLY_ALL),
        partial(routed, gain=0.3, bias=0.0),
        needs=("experts.shared",),
        **SHORT,
    ),
    Probe(
        "router.overflow",
        "scores of logits beyond 88, whose exponential is more than float32 holds",
        "10",
        config(0, **NEARLY_ALL),
        overflowing,
        needs=("router.scores",),
        **SHORT,
    ),
    Probe(
        "router.underflow",
        "scores of logits around -21, where 1 + e^x is 1 in float32",
        "10",
        config(0, **NEARLY_ALL),
        underflowing,
        needs=("router.scores",),
        **SHORT,
    ),
    Probe(
        "router.choice",
        "the choice of experts by score plus bias, their weights by score alone",
        "10",
        config(0),
        partial(routed, gain=0.3, bias=1.0),
        needs=("router.scores",),
        **SHORT,
    ),
    *(
        Probe(
            f"router.{function}",
            f"{function} as the score function",
            "10",
            config(0, scoring_func=function),
            partial(routed, gain=0.3, bias=1.0),
            needs=("router.choice",),
            beyond="every published config has scoring_func sqrtsoftplus",
            **SHORT,
        )
        for function in ("sigmoid", "softmax")
    ),
    Probe(
        "router.hash",
        "experts chosen by token id",
        "10",
        config(0, num_hash_layers=1),
        partial(routed, gain=0.3, bias=0.0),
        needs=("router.scores",),
        **SHORT,
    ),
    Probe(
        "experts.clamp",
        "the routed experts' clamp: gates from above, ups on both sides",
        "10",
        config(0),
        clamped,
        needs=("router.choice",),
        **SHORT,
    ),
)
