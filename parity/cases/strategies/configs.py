"""Tiny raw configs whose every size can differ from every other, and whose constants make each mechanism visible."""

from __future__ import annotations

from hypothesis import strategies as st

# What no case varies: keys with one legal value, and those that do not enter the forward pass.
FIXED = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "topk_method": "noaux_tc",
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "torch_dtype": "bfloat16",
}


def pick(*values):
    """One of the values; failing examples shrink towards the first."""
    return st.sampled_from(values)


@st.composite
def configs(draw, ratios: tuple[int, ...], mtp: int = 0) -> dict:
    """A raw config with these compression ratios; the last `mtp` of them belong to MTP blocks.

    norm_eps differs from hc_eps and both reach values where their place in a formula shows; 16 index heads keep
    scores from being exactly 0 in all heads (method, section 9).
    """
    heads, groups = draw(pick((2, 1), (4, 2), (2, 2), (6, 2), (6, 3)))
    rope_dim = draw(pick(8, 4, 16))
    original_length = draw(pick(64, 32, 0))
    scaling = {
        "type": "yarn",
        "factor": draw(pick(16, 4)),
        "original_max_position_embeddings": original_length,
        "beta_fast": draw(pick(32, 4)),
        "beta_slow": 1,
    }
    experts, active = draw(pick((4, 2), (6, 3), (8, 1), (5, 2)))
    return FIXED | {
        "vocab_size": 40,
        "hidden_size": draw(pick(16, 24, 40)),
        "num_hidden_layers": len(ratios) - mtp,
        "num_nextn_predict_layers": mtp,
        "num_hash_layers": draw(pick(0, 1)),
        "num_attention_heads": heads,
        "head_dim": rope_dim + draw(pick(8, 20)),
        "qk_rope_head_dim": rope_dim,
        "q_lora_rank": draw(pick(8, 12)),
        "o_groups": groups,
        "o_lora_rank": draw(pick(4, 10)),
        "sliding_window": draw(pick(4, 5, 8, 16)),
        "compress_ratios": list(ratios),
        "rope_theta": draw(pick(10000.0, 100.0)),
        "compress_rope_theta": draw(pick(160000.0, 500.0)),
        "rope_scaling": scaling,
        "index_n_heads": 16,
        "index_head_dim": draw(pick(16, 32)),
        "index_topk": draw(pick(2, 1, 3, 8)),
        "n_routed_experts": experts,
        "num_experts_per_tok": active,
        "moe_intermediate_size": draw(pick(8, 20)),
        "scoring_func": draw(pick("sqrtsoftplus", "sigmoid", "sqrtsoftplus", "softmax")),
        "routed_scaling_factor": draw(pick(1.5, 2.5)),
        "swiglu_limit": draw(pick(1.0, 10.0, 0.5, 2.0, 0.0)),
        "rms_norm_eps": draw(pick(1e-6, 1e-5, 1e-2)),
        "hc_mult": draw(pick(4, 2, 3)),
        "hc_sinkhorn_iters": draw(pick(20, 1, 2, 3)),
        "hc_eps": draw(pick(1e-6, 1e-3, 3e-2)),
    }
