"""The names that Hugging Face's model has in memory, which saves them so; it knows no MTP block."""

from ..family import Family, Spot, collapse, hyper_connections

COMPRESSOR = {"wkv": "kv_proj", "wgate": "gate_proj", "ape": "position_bias", "norm": "kv_norm"}
INDEXER = "self_attn.compressor.indexer"

FAMILY = Family(
    "F8",
    "names of Hugging Face's model",
    top={
        "embed": "embed_tokens",
        "head": "lm_head",
        **collapse("hc_head.hc_{}"),
    },
    block={
        **hyper_connections("attn_hc.{}", "ffn_hc.{}"),
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn.wq_a": "self_attn.q_a_proj",
        "attn.q_norm": "self_attn.q_a_norm",
        "attn.wq_b": "self_attn.q_b_proj",
        "attn.wkv": "self_attn.kv_proj",
        "attn.kv_norm": "self_attn.kv_norm",
        "attn.wo_a": "self_attn.o_a_proj",
        "attn.wo_b": "self_attn.o_b_proj",
        "attn.attn_sink": "self_attn.sinks",
        **{f"attn.compressor.{one}": f"self_attn.compressor.{to}" for one, to in COMPRESSOR.items()},
        "attn.indexer.wq_b": f"{INDEXER}.q_b_proj",
        "attn.indexer.weights_proj": f"{INDEXER}.scorer.weights_proj",
        **{f"attn.indexer.compressor.{one}": f"{INDEXER}.{to}" for one, to in COMPRESSOR.items()},
        "ffn.gate": "mlp.gate",
        "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
        "ffn.gate.tid2eid": "mlp.gate.tid2eid",
        "ffn.shared_experts.w1": "mlp.shared_experts.gate_proj",
        "ffn.shared_experts.w2": "mlp.shared_experts.down_proj",
        "ffn.shared_experts.w3": "mlp.shared_experts.up_proj",
        "ffn.experts.{e}.w1": Spot("mlp.experts.gate_up_proj", stacked=True, part=(0, 2), leaf=""),
        "ffn.experts.{e}.w3": Spot("mlp.experts.gate_up_proj", stacked=True, part=(1, 2), leaf=""),
        "ffn.experts.{e}.w2": Spot("mlp.experts.down_proj", stacked=True, leaf=""),
    },
    prefix="model.",
    bare=("lm_head",),
    packing="none",
    ports=("transformers 5.10.1",),
    mtp_as_published=True,
)
