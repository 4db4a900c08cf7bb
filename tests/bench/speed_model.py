"""The model whose speed is measured, and the small one that fills its caches.

Sizes that issue 4 gives: hidden 512, eight layers, 16 experts of which 4 act, head dim 128, window 128, index top-k 64.
The others keep the proportions of DeepSeek-V4-Flash where they can: expert width D/2, query latent D/4, outputs of the
groups 2 D; 16 heads instead of 32; an index key costs 1/8 of a key attended to (8 heads of 64 against 2 x 16 of 128).
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from parity.cases.strategies import checkpoint_tensors
from parity.gate.loading import write_as

RATIOS = (0, 0, 4, 128, 4, 128, 4, 0)
CONFIG = {
    "model_type": "deepseek_v4",
    "architectures": ["DeepseekV4ForCausalLM"],
    "vocab_size": 4096,
    "hidden_size": 512,
    "num_hidden_layers": len(RATIOS),
    "num_nextn_predict_layers": 0,
    "num_hash_layers": 1,
    "compress_ratios": list(RATIOS),
    "num_attention_heads": 16,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 128,
    "o_groups": 4,
    "o_lora_rank": 256,
    "sliding_window": 128,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "max_position_embeddings": 131072,
    "index_n_heads": 8,
    "index_head_dim": 64,
    "index_topk": 64,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 256,
    "scoring_func": "sqrtsoftplus",
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "rms_norm_eps": 1e-6,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
}
# A cache depends on these alone: layer kinds, head dims, window. All else is as small as it can be, so that the donor
# reads 32k tokens in the time in which the model reads a few hundred; the model then continues the donor's cache.
DONOR = CONFIG | {
    "hidden_size": 16,
    "num_attention_heads": 1,
    "q_lora_rank": 8,
    "o_groups": 1,
    "o_lora_rank": 8,
    "index_n_heads": 1,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "hc_mult": 1,
    "hc_sinkhorn_iters": 1,
}


def write_checkpoint(folder: Path, config: dict, dtype: str, family: str = "F1") -> Path:
    """A folder with random weights in float32 or bfloat16, with a family's names (docs/checkpoints.md)."""
    given, tensors = config | {"torch_dtype": dtype}, checkpoint_tensors(config, 0, dtype)
    if family != "F1":
        return write_as(family, given, tensors, folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(given))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
