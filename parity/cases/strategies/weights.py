"""Random checkpoints under the raw names, drawn so that every mechanism matters."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def tensor(random: torch.Generator, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """shift + scale * normal in float64."""
    return torch.randn(shape, generator=random, dtype=torch.float64) * scale + shift


def checkpoint_tensors(config: dict, seed: int, dtype: str) -> dict[str, Tensor]:
    """Raw-named tensors of a whole model: matrices and norms in `dtype`, the rest in float32, as published.

    Norms are far from 1, sinks and biases far from 0, hyper-connection matrices far from symmetric, and the experts'
    first matrices large enough to reach the SwiGLU limit on both sides.
    """
    random = torch.Generator().manual_seed(seed)
    stored = DTYPES[dtype]
    dim, n, rank = config["hidden_size"], config["hc_mult"], config["q_lora_rank"]
    heads, head_dim = config["num_attention_heads"], config["head_dim"]
    tensors: dict[str, Tensor] = {}

    def matrix(name: str, outputs: int, inputs: int, gain: float = 1.0) -> None:
        tensors[name] = tensor(random, outputs, inputs, scale=gain / inputs**0.5).to(stored)

    def norm(name: str, width: int) -> None:
        tensors[name] = tensor(random, width, scale=0.4, shift=1.0).to(stored)

    def vector(name: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> None:
        tensors[name] = tensor(random, *shape, scale=scale, shift=shift).float()

    def hyper_connection(prefix: str, rows: int, scales: int) -> None:
        vector(f"{prefix}_fn", rows, n * dim, scale=2.0 / (n * dim) ** 0.5)
        vector(f"{prefix}_base", rows)
        vector(f"{prefix}_scale", scales, scale=0.3, shift=1.0)

    def compressor(prefix: str, width: int, ratio: int) -> None:
        channels = width * (2 if ratio == 4 else 1)
        matrix(f"{prefix}.wkv.weight", channels, dim)
        matrix(f"{prefix}.wgate.weight", channels, dim, gain=2.0)
        vector(f"{prefix}.ape", ratio, channels)
        norm(f"{prefix}.norm.weight", width)

    def block(prefix: str, layer: int) -> None:
        ratio, hashed = config["compress_ratios"][layer], layer < config["num_hash_layers"]
        hyper_connection(f"{prefix}.hc_attn", (2 + n) * n, 3)
        hyper_connection(f"{prefix}.hc_ffn", (2 + n) * n, 3)
        norm(f"{prefix}.attn_norm.weight", dim)
        norm(f"{prefix}.ffn_norm.weight", dim)
        attn, ffn = f"{prefix}.attn", f"{prefix}.ffn"
        matrix(f"{attn}.wq_a.weight", rank, dim)
        norm(f"{attn}.q_norm.weight", rank)
        matrix(f"{attn}.wq_b.weight", heads * head_dim, rank, gain=2.0)
        matrix(f"{attn}.wkv.weight", head_dim, dim)
        norm(f"{attn}.kv_norm.weight", head_dim)
        matrix(
            f"{attn}.wo_a.weight", config["o_groups"] * config["o_lora_rank"], heads * head_dim // config["o_groups"]
        )
        matrix(f"{attn}.wo_b.weight", dim, config["o_groups"] * config["o_lora_rank"])
        vector(f"{attn}.attn_sink", heads, scale=2.0)
        if ratio:
            compressor(f"{attn}.compressor", head_dim, ratio)
        if ratio == 4:
            matrix(f"{attn}.indexer.wq_b.weight", config["index_n_heads"] * config["index_head_dim"], rank)
            matrix(f"{attn}.indexer.weights_proj.weight", config["index_n_heads"], dim)
            compressor(f"{attn}.indexer.compressor", config["index_head_dim"], ratio)
        matrix(f"{ffn}.gate.weight", config["n_routed_experts"], dim, gain=2.0)
        if hashed:
            table = torch.rand(config["vocab_size"], config["n_routed_experts"], generator=random).argsort(-1)
            tensors[f"{ffn}.gate.tid2eid"] = table[:, : config["num_experts_per_tok"]].contiguous()
        else:
            vector(f"{ffn}.gate.bias", config["n_routed_experts"])
        for expert in [*(f"experts.{e}" for e in range(config["n_routed_experts"])), "shared_experts"]:
            matrix(f"{ffn}.{expert}.w1.weight", config["moe_intermediate_size"], dim, gain=3.0)
            matrix(f"{ffn}.{expert}.w2.weight", dim, config["moe_intermediate_size"])
            matrix(f"{ffn}.{expert}.w3.weight", config["moe_intermediate_size"], dim, gain=3.0)

    matrix("embed.weight", config["vocab_size"], dim, gain=dim**0.5)
    for layer in range(config["num_hidden_layers"]):
        block(f"layers.{layer}", layer)
    norm("norm.weight", dim)
    hyper_connection("hc_head", n, 1)
    matrix("head.weight", config["vocab_size"], dim)
    for index in range(config["num_nextn_predict_layers"]):
        prefix = f"mtp.{index}"
        block(prefix, config["num_hidden_layers"] + index)
        matrix(f"{prefix}.e_proj.weight", dim, dim)
        matrix(f"{prefix}.h_proj.weight", dim, dim)
        for name in ("enorm", "hnorm", "norm"):
            norm(f"{prefix}.{name}.weight", dim)
        hyper_connection(f"{prefix}.hc_head", n, 1)
    return tensors
