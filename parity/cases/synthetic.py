"""Synthetic checkpoints: configs of three sizes after a published one, and tensors that are drawn one by one."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from dsv4_checkpoints import Stored, slots

from .strategies.weights import tensor

# Sides are multiples of 64, as in published models, so that every format of packed weights has its groups.
SIZES = {
    "tiny": {
        "vocab_size": 128,
        "hidden_size": 64,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "head_dim": 32,
        "qk_rope_head_dim": 16,
        "q_lora_rank": 64,
        "o_groups": 2,
        "o_lora_rank": 32,
        "sliding_window": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "index_n_heads": 4,
        "index_head_dim": 32,
        "index_topk": 4,
    },
    "mid": {
        "vocab_size": 512,
        "hidden_size": 256,
        "moe_intermediate_size": 128,
        "num_attention_heads": 8,
        "head_dim": 64,
        "qk_rope_head_dim": 32,
        "q_lora_rank": 128,
        "o_groups": 4,
        "o_lora_rank": 64,
        "sliding_window": 32,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "index_n_heads": 8,
        "index_head_dim": 64,
        "index_topk": 16,
    },
    "layer": {},
}
LAYERS = {"tiny": 4, "mid": 8}
GAINS = {"attn.wq_b": 2.0, "compressor.wgate": 2.0, "ffn.gate": 2.0, ".w1": 3.0, ".w3": 3.0}


def config_of_size(published: dict, size: str, mtp: bool) -> dict:
    """A published config with other sides, its first layers and its constants; `layer`: one layer of each kind."""
    config = published | SIZES[size]
    ratios, count = published["compress_ratios"], published["num_hidden_layers"]
    blocks = min(published["num_nextn_predict_layers"], 1) if mtp else 0
    if size == "layer":
        layers = list(dict.fromkeys(ratios[:count]))
        config["num_hash_layers"] = min(1, published["num_hash_layers"])
    else:
        layers = ratios[: min(LAYERS[size], count)]
        config["num_hash_layers"] = min(published["num_hash_layers"], len(layers) - 1)
        if config.get("rope_scaling"):  # so that YaRN acts within a short prompt
            config["rope_scaling"] = config["rope_scaling"] | {"original_max_position_embeddings": 64}
            config["max_position_embeddings"] = int(64 * config["rope_scaling"]["factor"])
    config["num_hidden_layers"], config["num_nextn_predict_layers"] = len(layers), blocks
    config["compress_ratios"] = [*layers, *ratios[count : count + blocks]]
    return {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}


class Synthetic(Mapping):
    """A whole model's tensors under their published names, in bfloat16 or float32; drawn when asked for, never kept.

    As in `strategies.weights`, every mechanism matters: norms far from 1, sinks and biases far from 0, and experts
    whose hidden states reach the SwiGLU limit.
    """

    def __init__(self, config: dict, seed: int = 0, dtype: str = "BF16", packed_experts: bool = False):
        """``packed_experts``: routed experts are drawn as published, in fp4: at true dimensions they are most."""
        self.config, self.seed = SimpleNamespace(**config), seed
        self.slots = dict(slots(self.config))
        self.stored = {}
        for name, slot in self.slots.items():
            if packed_experts and slot.published == "fp4":
                rows, columns = slot.shape
                self.stored[name] = Stored("I8", (rows, columns // 2))
                self.stored[name.removesuffix("weight") + "scale"] = Stored("F8_E8M0", (rows, columns // 32))
            else:
                kept = slot.published in ("F32", "I64")
                self.stored[name] = Stored(slot.published if kept else dtype, slot.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def forget(self) -> None:
        """Nothing is kept."""

    def __getitem__(self, name: str) -> Tensor:
        random = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{name}".encode()))
        if self.stored[name].dtype == "I8":
            return torch.randint(0, 256, self.stored[name].shape, generator=random, dtype=torch.uint8).view(torch.int8)
        if self.stored[name].dtype == "F8_E8M0":
            usual = 127 + round(
                math.log2(GAINS.get(f".{name.split('.')[-2]}", 1.0) / (3 * self.config.hidden_size**0.5))
            )
            drawn = torch.randint(usual - 1, usual + 2, self.stored[name].shape, generator=random, dtype=torch.uint8)
            return drawn.view(torch.float8_e8m0fnu)
        slot = self.slots[name]
        if slot.published == "I64":
            table = torch.rand(slot.shape[0], self.config.n_routed_experts, generator=random).argsort(-1)
            return table[:, : slot.shape[1]].contiguous()
        scale, shift = self._spread(name, slot.shape)
        if slot.is_matrix:  # up to a billion numbers: in float32
            drawn = torch.randn(slot.shape, generator=random) * scale
        else:
            drawn = tensor(random, *slot.shape, scale=scale, shift=shift)
        return drawn.to(torch.bfloat16 if self.stored[name].dtype == "BF16" else torch.float32)

    def _spread(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        owner = name.removesuffix(".weight")
        if owner == "embed":
            return 1.0, 0.0
        if self.slots[name].is_matrix:
            gain = next(
                (gain for end, gain in GAINS.items() if owner.endswith(end) and ".indexer.wq" not in owner), 1.0
            )
            return gain / shape[1] ** 0.5, 0.0
        if name.endswith("_fn"):
            return 2.0 / shape[1] ** 0.5, 0.0
        if name.endswith("_scale"):
            return 0.3, 1.0
        if name.endswith(".weight"):
            return 0.4, 1.0
        return (2.0 if name.endswith("attn_sink") else 1.0), 0.0
