"""Every tensor of a model under its published name, with its shape and how the published ones store it (spec 13).

These names are the model's tree: a family is described by where it puts them.
"""

from collections.abc import Iterator
from typing import NamedTuple

OVERLAP_RATIO = 4
TOP = ("embed.weight", "norm.weight", "head.weight", "hc_head_fn", "hc_head_base", "hc_head_scale")


class Slot(NamedTuple):
    """A tensor's shape [rows, columns] or [width], and the published storage: fp8, fp4, BF16, F32 or I64."""

    shape: tuple[int, ...]
    published: str

    @property
    def is_matrix(self) -> bool:
        """Whether it may be packed: a matrix in bfloat16, fp8 or fp4; hyper-connections and ape stay float32."""
        return len(self.shape) == 2 and self.published in ("fp8", "fp4", "BF16")


def slots(config, mtp_blocks: int | None = None) -> Iterator[tuple[str, Slot]]:
    """(published name, slot) of all tensors, block by block; ``config`` has the keys of ``config.json`` as attributes.

    Lazily, for a damaged config may count millions. ``mtp_blocks``: how many, where not as many as the config counts.
    """
    dim, n = config.hidden_size, config.hc_mult
    yield "embed.weight", Slot((config.vocab_size, dim), "BF16")
    for layer in range(config.num_hidden_layers):
        yield from block(config, f"layers.{layer}", layer)
    yield "norm.weight", Slot((dim,), "BF16")
    yield from _hyper_connection("hc_head", n, 1, n * dim)
    yield "head.weight", Slot((config.vocab_size, dim), "BF16")
    for depth in range(config.num_nextn_predict_layers if mtp_blocks is None else mtp_blocks):
        yield from mtp(config, f"mtp.{depth}", config.num_hidden_layers + depth)


def mtp(config, prefix: str, layer: int) -> Iterator[tuple[str, Slot]]:
    """One MTP block: a layer, and what joins it to the backbone."""
    dim, n = config.hidden_size, config.hc_mult
    yield f"{prefix}.enorm.weight", Slot((dim,), "BF16")
    yield f"{prefix}.hnorm.weight", Slot((dim,), "BF16")
    yield f"{prefix}.e_proj.weight", Slot((dim, dim), "fp8")
    yield f"{prefix}.h_proj.weight", Slot((dim, dim), "fp8")
    yield from block(config, prefix, layer)
    yield f"{prefix}.norm.weight", Slot((dim,), "BF16")
    yield from _hyper_connection(f"{prefix}.hc_head", n, 1, n * dim)


def block(config, prefix: str, layer: int) -> Iterator[tuple[str, Slot]]:
    """One decoder layer: hyper-connections, norms, attention, experts."""
    dim, n = config.hidden_size, config.hc_mult
    for site in ("attn", "ffn"):
        yield from _hyper_connection(f"{prefix}.hc_{site}", (2 + n) * n, 3, n * dim)
        yield f"{prefix}.{site}_norm.weight", Slot((dim,), "BF16")
    yield from _attention(config, f"{prefix}.attn", config.compress_ratios[layer])
    yield from _experts(config, f"{prefix}.ffn", layer < config.num_hash_layers)


def _attention(config, attn: str, ratio: int) -> Iterator[tuple[str, Slot]]:
    dim, heads, width = config.hidden_size, config.num_attention_heads, config.head_dim
    rank, grouped = config.q_lora_rank, config.o_groups * config.o_lora_rank
    yield f"{attn}.wq_a.weight", Slot((rank, dim), "fp8")
    yield f"{attn}.q_norm.weight", Slot((rank,), "BF16")
    yield f"{attn}.wq_b.weight", Slot((heads * width, rank), "fp8")
    yield f"{attn}.wkv.weight", Slot((width, dim), "fp8")
    yield f"{attn}.kv_norm.weight", Slot((width,), "BF16")
    yield f"{attn}.wo_a.weight", Slot((grouped, heads * width // config.o_groups), "fp8")
    yield f"{attn}.wo_b.weight", Slot((dim, grouped), "fp8")
    yield f"{attn}.attn_sink", Slot((heads,), "F32")
    if ratio:
        yield from _compressor(f"{attn}.compressor", dim, width, ratio)
    if ratio == OVERLAP_RATIO:
        yield f"{attn}.indexer.wq_b.weight", Slot((config.index_n_heads * config.index_head_dim, rank), "fp8")
        yield f"{attn}.indexer.weights_proj.weight", Slot((config.index_n_heads, dim), "BF16")
        yield from _compressor(f"{attn}.indexer.compressor", dim, config.index_head_dim, ratio)


def _compressor(prefix: str, dim: int, width: int, ratio: int) -> Iterator[tuple[str, Slot]]:
    channels = 2 * width if ratio == OVERLAP_RATIO else width
    yield f"{prefix}.wkv.weight", Slot((channels, dim), "BF16")
    yield f"{prefix}.wgate.weight", Slot((channels, dim), "BF16")
    yield f"{prefix}.ape", Slot((ratio, channels), "F32")
    yield f"{prefix}.norm.weight", Slot((width,), "BF16")


def _experts(config, ffn: str, hashed: bool) -> Iterator[tuple[str, Slot]]:
    dim, inner, experts = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
    yield f"{ffn}.gate.weight", Slot((experts, dim), "BF16")
    if hashed:
        yield f"{ffn}.gate.tid2eid", Slot((config.vocab_size, config.num_experts_per_tok), "I64")
    else:
        yield f"{ffn}.gate.bias", Slot((experts,), "F32")
    shapes = {"w1": (inner, dim), "w2": (dim, inner), "w3": (inner, dim)}
    for matrix, shape in shapes.items():
        yield f"{ffn}.shared_experts.{matrix}.weight", Slot(shape, "fp8")
    for matrix, shape in shapes.items():
        for expert in range(experts):
            yield f"{ffn}.experts.{expert}.{matrix}.weight", Slot(shape, "fp4")


def _hyper_connection(prefix: str, rows: int, scales: int, width: int) -> Iterator[tuple[str, Slot]]:
    yield f"{prefix}_fn", Slot((rows, width), "F32")
    yield f"{prefix}_base", Slot((rows,), "F32")
    yield f"{prefix}_scale", Slot((scales,), "F32")
