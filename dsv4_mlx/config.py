"""Configuration of DeepSeek-V4 by the keys of a raw Hugging Face ``config.json`` (spec 1)."""

import math
import reprlib
from dataclasses import MISSING, dataclass, fields
from typing import Any

from mlx_lm.models.base import BaseModelArgs

OVERLAP_RATIO = 4  # layers of this ratio pool over two blocks and choose rows by an indexer
SCORING_FUNCTIONS = ("sqrtsoftplus", "sigmoid", "softmax")
SIMULATIONS = ("none", "rows", "published")
TYPES = ("float32", "bfloat16", "float16")

# What the formulas leave no room for: a config that says otherwise describes another model.
FIXED = {
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "topk_method": "noaux_tc",
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
}
# The most of each: far beyond any published config, and small enough that a damaged one takes no machine down.
MOST = {
    "vocab_size": 2**24,
    "hidden_size": 2**17,
    "moe_intermediate_size": 2**17,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**12,
    "head_dim": 2**14,
    "qk_rope_head_dim": 2**14,
    "q_lora_rank": 2**17,
    "o_groups": 2**12,
    "o_lora_rank": 2**17,
    "sliding_window": 2**24,
    "n_routed_experts": 2**13,
    "num_experts_per_tok": 2**13,
    "index_n_heads": 2**12,
    "index_head_dim": 2**14,
    "index_topk": 2**24,
    "hc_mult": 2**6,
    "hc_sinkhorn_iters": 2**10,
    "num_hash_layers": 2**10,
    "num_nextn_predict_layers": 2**4,
}
MOST_RATIO = 2**20
AT_LEAST_ZERO = ("num_hash_layers", "num_nextn_predict_layers")
NUMBERS = (
    "rope_theta",
    "compress_rope_theta",
    "routed_scaling_factor",
    "swiglu_limit",
    "hc_eps",
    "rms_norm_eps",
)
# YaRN's parameters and the least value of each.
YARN = {"factor": 1, "original_max_position_embeddings": 0, "beta_fast": 0, "beta_slow": 0}


@dataclass
class ModelArgs(BaseModelArgs):
    """All that the forward pass reads, named as in ``config.json``, and two options of this program.

    ``compress_ratios`` has one entry a backbone layer and one an MTP block: 0 is a window-only layer, 4 an
    overlapping compressor with an indexer, any other r a plain compressor whose rows are all visible.
    """

    vocab_size: int
    hidden_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_hash_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    sliding_window: int
    compress_ratios: list[int]
    rope_theta: float
    compress_rope_theta: float
    n_routed_experts: int
    num_experts_per_tok: int
    scoring_func: str
    routed_scaling_factor: float
    swiglu_limit: float
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    hc_mult: int
    hc_sinkhorn_iters: int
    rope_scaling: dict[str, Any] | None = None  # YaRN of the layers with a ratio above 0; None: no YaRN
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    num_nextn_predict_layers: int = 0
    max_position_embeddings: int = 1048576
    torch_dtype: str = "bfloat16"
    model_type: str = "deepseek_v4"
    num_key_value_heads: int = 1
    n_shared_experts: int = 1
    norm_topk_prob: bool = True
    topk_method: str = "noaux_tc"
    hidden_act: str = "silu"
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    quantization: dict[str, Any] | None = None  # of MLX's conversions, by module where they differ
    quantization_config: dict[str, Any] | None = None  # the same, or that of the published weights
    shared_expert_clamp: bool = True  # False: the program as first published (spec 0, revision 2b2bebc1)
    quantization_simulation: str = "none"  # roundings of spec 12.7: of "rows" and the indexer, or all "published"

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> "ModelArgs":
        """Args from a parsed ``config.json``; unknown keys are ignored, missing ones raise ValueError."""
        _require(isinstance(params, dict), f"The config must be a JSON object, not {reprlib.repr(params)}.")
        _require(
            "hidden_size" in params or not {"dim", "n_layers"} <= params.keys(),
            "The config is the official program's own (dim, n_layers, ...); take the config.json that is published "
            "beside the weights.",
        )
        if params.get("torch_dtype") is None and params.get("dtype") is not None:  # its name since transformers 4.56
            params = params | {"torch_dtype": params["dtype"]}
        held = params.get("quantization_config")
        if params.get("quantization") is None and isinstance(held, dict) and held.keys() & {"bits", "mode"}:
            # In place, for mlx-lm reads this dictionary after us, and where it finds the second name alone it asks for
            # a quant_method, which conversions lack.
            params["quantization"] = held
        needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        missing = [name for name in needed if params.get(name) is None]
        if missing:
            raise ValueError(f"The config lacks {', '.join(missing)}.")
        known = {f.name for f in fields(cls)}  # as mlx-lm does it, which looks at the signature once a key: 10 ms
        return cls(**{name: value for name, value in params.items() if name in known})

    def __post_init__(self):
        for name, most in MOST.items():
            value, least = getattr(self, name), 0 if name in AT_LEAST_ZERO else 1
            _require(
                isinstance(value, int) and not isinstance(value, bool) and value >= least,
                f"{name} must be an integer of at least {least}, not {reprlib.repr(value)}.",
            )
            _require(value <= most, f"{name} must be at most {most}, not {reprlib.repr(value)}.")
        _require(
            self.torch_dtype in TYPES,
            f"torch_dtype must be one of {', '.join(TYPES)}, not {reprlib.repr(self.torch_dtype)}.",
        )
        for name in NUMBERS:
            value = getattr(self, name)
            _require(_is_number(value), f"{name} must be a finite number, not {reprlib.repr(value)}.")
            _require(value > 0 or not name.endswith("theta"), f"{name} must be above 0, not {value}.")
        for name, value in FIXED.items():
            found = getattr(self, name)
            _require(found == value, f"{name} must be {value!r} in DeepSeek-V4, not {reprlib.repr(found)}.")
        _require(
            isinstance(self.compress_ratios, (list, tuple)),
            f"compress_ratios must be a list of integers, not {reprlib.repr(self.compress_ratios)}.",
        )
        layers, drafts = self.num_hidden_layers, self.num_nextn_predict_layers
        _require(
            len(self.compress_ratios) == layers + drafts,
            f"compress_ratios has {len(self.compress_ratios)} entries, but num_hidden_layers + "
            f"num_nextn_predict_layers is {layers} + {drafts}.",
        )
        _require(
            all(isinstance(r, int) and not isinstance(r, bool) and 0 <= r <= MOST_RATIO for r in self.compress_ratios),
            f"compress_ratios must be integers from 0 to {MOST_RATIO}, not {reprlib.repr(self.compress_ratios)}.",
        )
        _require(
            self.num_attention_heads % self.o_groups == 0,
            f"num_attention_heads {self.num_attention_heads} is not divisible by o_groups {self.o_groups}.",
        )
        rope = self.qk_rope_head_dim
        _require(rope % 2 == 0, f"qk_rope_head_dim {rope} is odd, but channels rotate in pairs.")
        _require(rope <= self.head_dim, f"qk_rope_head_dim {rope} is more than head_dim {self.head_dim}.")
        _require(
            self.num_experts_per_tok <= self.n_routed_experts,
            f"num_experts_per_tok {self.num_experts_per_tok} is more than n_routed_experts {self.n_routed_experts}.",
        )
        _require(
            self.scoring_func in SCORING_FUNCTIONS,
            f"scoring_func {reprlib.repr(self.scoring_func)} is none of {', '.join(SCORING_FUNCTIONS)}.",
        )
        _require(
            self.quantization_simulation in SIMULATIONS,
            f"quantization_simulation {self.quantization_simulation!r} is none of {', '.join(SIMULATIONS)}.",
        )
        if OVERLAP_RATIO in self.compress_ratios:
            self._check_indexer()
        if self.rope_scaling is not None:
            self._check_yarn()

    def _check_indexer(self):
        dim, rope = self.index_head_dim, self.qk_rope_head_dim
        _require(rope <= dim, f"qk_rope_head_dim {rope} is more than index_head_dim {dim}.")
        if self.quantization_simulation != "none":
            _require(
                dim & (dim - 1) == 0,
                f"index_head_dim {dim} is no power of 2, as its Hadamard rotation needs.",
            )

    def _check_yarn(self):
        yarn = self.rope_scaling
        _require(isinstance(yarn, dict), f"rope_scaling must be an object or null, not {reprlib.repr(yarn)}.")
        kind = yarn.get("type", yarn.get("rope_type"))
        _require(kind == "yarn", f"rope_scaling is of type {reprlib.repr(kind)}, but DeepSeek-V4 knows yarn only.")
        missing = [name for name in YARN if name not in yarn]
        _require(not missing, f"rope_scaling lacks {', '.join(missing)}.")
        for name, least in YARN.items():
            value = yarn[name]
            _require(
                _is_number(value) and value >= least and (value > 0 or not name.startswith("beta")),
                f"rope_scaling has {name} {reprlib.repr(value)}, which YaRN cannot use.",
            )
        base = self.compress_rope_theta
        _require(base > 1, f"compress_rope_theta is {base}, but YaRN needs a base above 1.")


def _is_number(value) -> bool:
    """Neither NaN, nor infinite, nor an integer that no float can hold."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _require(condition: bool, sentence: str):
    if not condition:
        raise ValueError(sentence)
