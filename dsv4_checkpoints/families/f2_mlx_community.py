"""mlx-community/DeepSeek-V4-Flash-*: the names of mlx-lm's pull request 1192."""

from ..family import Family, Spot, collapse, hyper_connections

FAMILY = Family(
    "F2",
    "mlx-community (names of mlx-lm pull request 1192)",
    top={
        "embed": "embed_tokens",
        "head": "lm_head",
        **collapse("hc_head.{}"),
    },
    block={
        **hyper_connections("attn_hc.{}", "ffn_hc.{}"),
        **collapse("hc_head.{}"),
        "ffn.gate.bias": "ffn.gate.e_score_correction_bias",
        "ffn.experts.{e}.w1": Spot("ffn.switch_mlp.gate_proj", stacked=True),
        "ffn.experts.{e}.w2": Spot("ffn.switch_mlp.down_proj", stacked=True),
        "ffn.experts.{e}.w3": Spot("ffn.switch_mlp.up_proj", stacked=True),
        "ffn.shared_experts.w1": "ffn.shared_experts.gate_proj",
        "ffn.shared_experts.w2": "ffn.shared_experts.down_proj",
        "ffn.shared_experts.w3": "ffn.shared_experts.up_proj",
    },
    prefix="model.",
    bare=("lm_head",),
    ports=("mlx-lm with pull request 1192",),
)
