"""Everything at once, with the layer lists of the published models in small."""

from . import Probe
from .weights import Weights, config

LENGTH = {"tokens": 270, "prompt": 250, "chunks": (100, 27, 1, 72, 50, 20)}
ALL = (
    "router.hash",
    "experts.clamp",
    "experts.shared_clamp",
    "rope.plain_rows",
    "indexer.rope",
    "hc.dynamic",
    "hc.head",
)
SIZES = {"num_attention_heads": 2, "sliding_window": 16, "index_topk": 12, "hc_sinkhorn_iters": 20}

ODD = {
    "vocab_size": 46,
    "hidden_size": 36,
    "num_attention_heads": 3,
    "o_groups": 1,
    "head_dim": 28,
    "qk_rope_head_dim": 12,
    "q_lora_rank": 18,
    "o_lora_rank": 10,
    "index_head_dim": 20,
    "moe_intermediate_size": 22,
    "n_routed_experts": 5,
}


def as_drawn(weights: Weights) -> None:
    """Nothing is muted."""


PROBES = (
    Probe(
        "mtp",
        "the MTP block",
        "11",
        config(0, 0, mtp=1, sliding_window=8, hc_sinkhorn_iters=20),
        as_drawn,
        tokens=29,
        prompt=17,
        chunks=(7, 1, 9, 12),
        needs=("router.choice", "rope.inverse", "hc.dynamic", "hc.head"),
        mtp=True,
    ),
    Probe(
        "model.flash",
        "the whole model, layers as in Flash",
        "3",
        config(0, 0, 4, 128, 4, 0, mtp=1, num_hash_layers=1, **SIZES),
        as_drawn,
        needs=ALL,
        **LENGTH,
    ),
    Probe(
        "model.pro",
        "the whole model, layers as in Pro",
        "3",
        config(128, 128, 4, 0, mtp=1, num_hash_layers=1, routed_scaling_factor=2.5, **SIZES),
        as_drawn,
        needs=ALL,
        **LENGTH,
    ),
    Probe(
        "model.odd_sides",
        "the whole model, with sides that are no multiples of 32",
        "3",
        config(0, 4, 128, 0, num_hash_layers=1, **SIZES | ODD),
        as_drawn,
        needs=("model.flash",),
        beyond="sides of published models are multiples of 64",
        schedules=("cached", "decode"),
        **LENGTH,
    ),
)
