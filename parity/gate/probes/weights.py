"""Turning random weights into a probe's: what is muted, what stands still, and what drowns everything else."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ...cases.strategies.configs import FIXED
from ...cases.strategies.weights import checkpoint_tensors

# One sub-layer's output times this, and the residual streams hold nothing else to float32's last bit: every norm after
# it erases the scale, so that hyper-connections cannot be seen, right or wrong.
LOUD = 2.0**40
# Embeddings far above 1, so that the eps of the norms that read them cannot be seen either.
EMBEDDED = 1024.0
# What has a norm of its own right after it, and a size at which that norm's eps cannot be seen.
NORMED = r".*\.attn\.(wq_a|wkv|(indexer\.)?compressor\.wkv)\.weight"
FAR_FROM_EPS = 64.0
# exp(-1000) is 0 beside any other weight of a softmax, and exp(-1000 / 192^0.5) too.
SILENT_SINK = -1000.0

# What a published config says of how a model computes; only what says how large it is, is made smaller. Sides are
# multiples of 64 as published ones are: ports quantise in groups of 32 or 64, and call kernels that want such sides.
FLASH = FIXED | {
    "torch_dtype": "float32",
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hash_layers": 0,
    "num_attention_heads": 4,
    "head_dim": 192,  # the least in which neither the first nor the last 64 channels are all
    "qk_rope_head_dim": 64,
    "q_lora_rank": 64,
    "o_groups": 2,
    "o_lora_rank": 64,
    "sliding_window": 8,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "max_position_embeddings": 1048576,
    "index_n_heads": 16,
    "index_head_dim": 128,
    "index_topk": 512,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "scoring_func": "sqrtsoftplus",
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "rms_norm_eps": 1e-6,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 4,  # not 20: where all coefficients are alike, as most probes have them, none says another
    "hc_eps": 1e-6,
}


def config(*ratios: int, mtp: int = 0, **changed) -> dict:
    """A raw Flash-like config with these compression ratios, the last `mtp` of them those of MTP blocks."""
    layers = {"num_hidden_layers": len(ratios) - mtp, "num_nextn_predict_layers": mtp}
    return FLASH | layers | {"compress_ratios": list(ratios)} | changed


class Weights:
    """Random tensors of a whole model, and the changes that probes are written in. Patterns match whole names."""

    def __init__(self, config: dict, seed: int, dtype: str = "float32"):
        self.config = config
        self.tensors: dict[str, Tensor] = checkpoint_tensors(config, seed, dtype)

    def change(self, pattern: str, change) -> None:
        """Replace every tensor whose name matches by change(tensor); a pattern that matches nothing is a mistake."""
        names = [name for name in self.tensors if re.fullmatch(pattern, name)]
        if not names:
            raise ValueError(f"no tensor is called {pattern}.")
        for name in names:
            old = self.tensors[name]
            self.tensors[name] = change(old).to(old.dtype).contiguous()

    def zero(self, pattern: str) -> None:
        self.change(pattern, torch.zeros_like)

    def fill(self, pattern: str, value: float) -> None:
        self.change(pattern, lambda x: torch.full_like(x, value))

    def scale(self, pattern: str, factor: float) -> None:
        self.change(pattern, lambda x: x * factor)

    def mute_attention(self) -> None:
        """No attention adds anything to the streams."""
        self.zero(r".*\.attn\.wo_b\.weight")

    def mute_experts(self) -> None:
        """No expert adds anything to the streams."""
        self.zero(r".*\.ffn\..*\.w2\.weight")

    def mute_routed(self) -> None:
        self.zero(r".*\.experts\.\d+\.w2\.weight")

    def still_hyper_connections(self) -> None:
        """Mixing that does not depend on the streams, with all coefficients alike."""
        self.zero(r".*hc_(attn|ffn|head)_(fn|base)")

    def only_attention(self) -> None:
        """The logits depend on the attention of the only layer."""
        self.mute_experts()
        self.still_hyper_connections()
        self.scale("embed.weight", EMBEDDED)
        self.scale(NORMED, FAR_FROM_EPS)
        self.scale(r".*\.attn\.wo_b\.weight", LOUD)

    def only_experts(self) -> None:
        """The logits depend on the experts of the only layer."""
        self.mute_attention()
        self.still_hyper_connections()
        self.scale("embed.weight", EMBEDDED)
        self.scale(r".*\.ffn\..*\.w2\.weight", LOUD)

    def without_positions(self) -> None:
        """Key-value rows, of the window and compressed, have nothing in the channels that rotate, nor in those that a
        port may rotate in their place."""
        dim, rope = self.config["head_dim"], self.config["qk_rope_head_dim"]

        def still(x: Tensor) -> Tensor:
            x = x.clone()
            rows = x.unflatten(0, (-1, dim))
            rows[:, :rope] = rows[:, dim - rope :] = 0
            return x

        self.change(r".*\.attn\.(wkv|compressor\.wkv)\.weight", still)

    def without_queries(self) -> None:
        """Queries of zero: every visible row has the same weight."""
        self.zero(r".*\.attn\.wq_b\.weight")

    def without_sinks(self) -> None:
        self.fill(r".*\.attn\.attn_sink", SILENT_SINK)

    def outputs_without_positions(self) -> None:
        """The output projection does not read the channels that rotate."""
        dim, rope = self.config["head_dim"], self.config["qk_rope_head_dim"]

        def blind(x: Tensor) -> Tensor:
            x = x.clone()
            x.unflatten(1, (-1, dim))[..., dim - rope :] = 0
            return x

        self.change(r".*\.attn\.wo_a\.weight", blind)

    def without_gates(self) -> None:
        """Compressors pool by plain means: no gate, no position in the block."""
        self.zero(r".*\.compressor\.(wgate\.weight|ape)")
