"""Random lives of the model's caches: calls, rewinds, copies, files, batches that merge, split and are padded."""

from __future__ import annotations

from ..cases.strategies.configs import FIXED
from . import LifePair

SIZES = FIXED | {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_nextn_predict_layers": 0,
    "num_hash_layers": 1,
    "num_attention_heads": 4,
    "head_dim": 16,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 12,
    "o_groups": 2,
    "o_lora_rank": 10,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "index_n_heads": 16,
    "index_head_dim": 16,
    "index_topk": 3,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "scoring_func": "sqrtsoftplus",
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 2.0,
    "rms_norm_eps": 1e-6,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 3,
    "hc_eps": 1e-6,
}


def config(ratios: tuple[int, ...], window: int) -> dict:
    """A raw config with these layers."""
    return SIZES | {"compress_ratios": list(ratios), "num_hidden_layers": len(ratios), "sliding_window": window}


# The first one must show all by itself, since few lives are spent in quick. A prime window meets no block's edge.
CONFIGS = (config((0, 4, 128), 6), config((4, 128, 0, 4), 16), config((128, 4, 8), 5))

PAIR = LifePair(name="cache", title="lives of the caches", spec="7.1, 8", configs=CONFIGS, contains=("model",))
