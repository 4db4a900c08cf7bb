"""The configuration of DeepSeek-V4 in the raw Hugging Face keys (spec 1), checked key by key.

Every problem is a `ConfigError` of one sentence that names the key, what was found and what was expected.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import reprlib
import stat
from dataclasses import dataclass, fields
from pathlib import Path

from dsv4_checkpoints.errors import shown

SCORING_FUNCTIONS = ("sqrtsoftplus", "sigmoid", "softmax")
QUANTIZATION_SIMULATIONS = ("none", "rows", "published")

# Keys with exactly one value in this architecture: another value means another model.
FIXED = {
    "model_type": "deepseek_v4",
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "norm_topk_prob": True,
    "topk_method": "noaux_tc",
}

# Keys that published configs carry and that do not enter the forward pass.
IGNORED = frozenset(
    "architectures attention_dropout bos_token_id dtype eos_token_id expert_dtype initializer_range "
    "max_position_embeddings model_file pad_token_id quantization quantization_config torch_dtype "
    "transformers_version use_cache auto_map name_or_path _name_or_path".split()
)

# The most of each: far beyond any published config, and small enough that a damaged one takes no machine down.
MOST = {
    "vocab_size": 2**24,
    "hidden_size": 2**17,
    "num_hidden_layers": 2**10,
    "num_nextn_predict_layers": 2**4,
    "num_hash_layers": 2**10,
    "num_attention_heads": 2**12,
    "head_dim": 2**14,
    "qk_rope_head_dim": 2**14,
    "q_lora_rank": 2**17,
    "o_groups": 2**12,
    "o_lora_rank": 2**17,
    "sliding_window": 2**24,
    "compress_ratios": 2**20,
    "index_n_heads": 2**12,
    "index_head_dim": 2**14,
    "index_topk": 2**24,
    "n_routed_experts": 2**13,
    "num_experts_per_tok": 2**13,
    "moe_intermediate_size": 2**17,
    "hc_mult": 2**6,
    "hc_sinkhorn_iters": 2**10,
}
TYPES = ("float32", "bfloat16", "float16")
MAX_JSON = 100_000_000  # bytes
ROPE_SCALING_KEYS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")


class ConfigError(ValueError):
    """A config that no DeepSeek-V4 can have; the message is one sentence for the user."""


@dataclass(frozen=True)
class YaRN:
    """Parameters of YaRN (spec 5): interpolation factor, trained length L, and the two rotation counts."""

    factor: float
    original_max_position_embeddings: float
    beta_fast: float
    beta_slow: float


@dataclass(frozen=True)
class Options:
    """What two published programs do differently from the same weights.

    shared_expert_clamp: the shared expert gets the SwiGLU limit (revisions since 2026-04-27) or not (first release).
    quantization_simulation: "none"; "rows": window and compressed KV rounded to fp8, the indexer's queries and keys
        rotated and rounded to fp4; or "published": that, and activations rounded to fp8 before fp8 and fp4 matrices.
    """

    shared_expert_clamp: bool = True
    quantization_simulation: str = "none"

    def __post_init__(self):
        if self.quantization_simulation not in QUANTIZATION_SIMULATIONS:
            raise ConfigError(
                f"quantization_simulation is {self.quantization_simulation!r}; "
                f"it must be one of {', '.join(QUANTIZATION_SIMULATIONS)}."
            )


@dataclass(frozen=True)
class Config:
    """Sizes and constants of one model, named by their Hugging Face keys (spec 1)."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_nextn_predict_layers: int
    num_hash_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    sliding_window: int
    compress_ratios: tuple[int, ...]
    rope_theta: float
    compress_rope_theta: float
    rope_scaling: YaRN | None
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    scoring_func: str
    routed_scaling_factor: float
    swiglu_limit: float
    rms_norm_eps: float
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float

    @classmethod
    def from_dict(cls, raw: dict) -> Config:
        """A checked configuration from the raw keys of a `config.json`. Raises ConfigError."""
        if not isinstance(raw, dict):
            raise ConfigError(f"the config is a {type(raw).__name__}; it must be a JSON object.")
        if {"dim", "n_layers"} <= raw.keys() and "hidden_size" not in raw:
            raise ConfigError(
                "the config is the official program's own (dim, n_layers, ...); take the config.json that is published "
                "beside the weights."
            )
        stored = raw.get("torch_dtype") or raw.get("dtype") or TYPES[0]
        if stored not in TYPES:
            raise ConfigError(
                f"config key 'torch_dtype' is {reprlib.repr(stored)}; it must be one of {', '.join(TYPES)}."
            )
        names = [field.name for field in fields(cls)]
        for key in raw:
            if key not in names and key not in FIXED and key not in IGNORED:
                close = difflib.get_close_matches(key, [*names, *FIXED], n=1)
                hint = (
                    f"did you mean '{close[0]}'?" if close else "remove it, or use a config of model_type deepseek_v4."
                )
                raise ConfigError(f"config key {shown(key)} is unknown; {hint}")
        for key, value in FIXED.items():
            if raw.get(key, value) != value:
                raise ConfigError(
                    f"config key '{key}' is {reprlib.repr(raw[key])}; DeepSeek-V4 defines only {value!r}."
                )
        for key in names:
            if key not in raw:
                raise ConfigError(
                    f"config key '{key}' is missing; take it from the published config.json of the model."
                )
        values = {field.name: _typed(field.name, field.type, raw[field.name]) for field in fields(cls)}
        config = cls(**values)
        config._check()
        return config

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """The configuration in a `config.json`, or in the folder that holds one. Raises ConfigError."""
        path = Path(path)
        path = path / "config.json" if os.path.isdir(path) else path
        try:
            return cls.from_dict(read_json(path))
        except ConfigError as error:
            raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from error

    def ratio(self, layer: int) -> int:
        """Compression ratio of a layer; MTP block m is layer `num_hidden_layers + m`."""
        return self.compress_ratios[layer]

    def is_hash_routed(self, layer: int) -> bool:
        """Whether a layer takes its experts from the table `tid2eid` (spec 10)."""
        return layer < self.num_hash_layers

    def _check(self) -> None:
        for key in (
            "vocab_size hidden_size num_hidden_layers num_attention_heads head_dim qk_rope_head_dim "
            "q_lora_rank o_groups "
            "o_lora_rank sliding_window index_n_heads index_head_dim index_topk n_routed_experts num_experts_per_tok "
            "moe_intermediate_size hc_mult hc_sinkhorn_iters rope_theta compress_rope_theta"
        ).split():
            if getattr(self, key) <= 0:
                raise ConfigError(f"config key '{key}' is {getattr(self, key)}; it must be positive.")
        for key in ("num_nextn_predict_layers", "num_hash_layers", "swiglu_limit", "rms_norm_eps", "hc_eps"):
            if getattr(self, key) < 0:
                raise ConfigError(f"config key '{key}' is {getattr(self, key)}; it must not be negative.")
        blocks = self.num_hidden_layers + self.num_nextn_predict_layers
        if len(self.compress_ratios) != blocks:
            raise ConfigError(
                f"config key 'compress_ratios' has {len(self.compress_ratios)} entries; it needs {blocks}: "
                "one for each of "
                f"num_hidden_layers={self.num_hidden_layers} and "
                f"num_nextn_predict_layers={self.num_nextn_predict_layers}."
            )
        if any(ratio < 0 for ratio in self.compress_ratios):
            raise ConfigError("config key 'compress_ratios' has a negative entry; use 0 for a window-only layer.")
        if self.rope_scaling is not None and self.compress_rope_theta <= 1:
            raise ConfigError(
                f"config key 'compress_rope_theta' is {self.compress_rope_theta}; YaRN needs a base above 1."
            )
        if self.num_attention_heads % self.o_groups:
            raise ConfigError(
                f"config key 'num_attention_heads' is {self.num_attention_heads}, which "
                f"o_groups={self.o_groups} does not "
                "divide; the output projection needs equal groups of heads."
            )
        if self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"config key 'qk_rope_head_dim' is {self.qk_rope_head_dim}; rotation needs pairs of channels."
            )
        for key in ("head_dim", "index_head_dim"):
            if key == "index_head_dim" and 4 not in self.compress_ratios:
                continue
            if self.qk_rope_head_dim > getattr(self, key):
                raise ConfigError(
                    f"config key 'qk_rope_head_dim' is {self.qk_rope_head_dim}, more than {key}={getattr(self, key)}."
                )
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ConfigError(
                f"config key 'num_experts_per_tok' is {self.num_experts_per_tok}, more than "
                f"n_routed_experts={self.n_routed_experts}."
            )
        if self.scoring_func not in SCORING_FUNCTIONS:
            raise ConfigError(
                f"config key 'scoring_func' is {reprlib.repr(self.scoring_func)}; it must be one of "
                f"{', '.join(SCORING_FUNCTIONS)}."
            )


def read_json(path: str | Path):
    """What a JSON file holds; a pipe is not waited for. Raises ConfigError."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_JSON:
                raise ConfigError(f"{path} cannot be read: it is no plain file of at most {MAX_JSON} bytes.")
            return json.loads(file.read().decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise ConfigError(f"{path} is not valid JSON: {error}.") from error


def _typed(key: str, kind: str, value):
    """`value` as the annotated type of `key`, or a ConfigError that says what it is instead."""
    if key == "compress_ratios":
        if not isinstance(value, (list, tuple)) or not all(_is_int(item) for item in value):
            raise ConfigError("config key 'compress_ratios' must be a list of integers, one a layer.")
        if any(item > MOST[key] for item in value):
            raise ConfigError(f"config key 'compress_ratios' has an entry above {MOST[key]}.")
        return tuple(value)
    if key == "rope_scaling":
        return _yarn(value)
    shown = reprlib.repr(value)
    if kind == "str":
        if not isinstance(value, str):
            raise ConfigError(f"config key '{key}' is {shown}; it must be a string.")
        return value
    if kind == "int":
        if not _is_int(value):
            raise ConfigError(f"config key '{key}' is {shown}; it must be an integer.")
        if value > MOST[key]:
            raise ConfigError(f"config key '{key}' is {shown}; it must be at most {MOST[key]}.")
        return value
    if not _is_number(value):
        raise ConfigError(f"config key '{key}' is {shown}; it must be a finite number.")
    return float(value)


def _is_number(value) -> bool:
    """Neither NaN, nor infinite, nor an integer that no float can hold."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _yarn(value) -> YaRN | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ConfigError("config key 'rope_scaling' must be an object with YaRN's parameters, or null.")
    kind = value.get("type", value.get("rope_type"))
    if kind != "yarn":
        raise ConfigError(f"config key 'rope_scaling' has type {reprlib.repr(kind)}; DeepSeek-V4 defines only 'yarn'.")
    for key in value:
        if key not in (*ROPE_SCALING_KEYS, "type", "rope_type"):
            raise ConfigError(
                f"config key 'rope_scaling' holds {shown(key)}; DeepSeek-V4 defines only "
                f"{', '.join(ROPE_SCALING_KEYS)}."
            )
    for key in ROPE_SCALING_KEYS:
        if key not in value:
            raise ConfigError(f"config key 'rope_scaling' lacks '{key}'.")
        number = value[key]
        if not _is_number(number) or number < 0:
            raise ConfigError(
                f"config key 'rope_scaling' has {key}={reprlib.repr(number)}; it must be a number, zero or more."
            )
        if number == 0 and key.startswith("beta"):
            raise ConfigError(f"config key 'rope_scaling' has {key}={number}; it must be positive.")
    if value["factor"] < 1:
        raise ConfigError(f"config key 'rope_scaling' has factor={value['factor']}; it must be at least 1.")
    return YaRN(**{key: float(value[key]) for key in ROPE_SCALING_KEYS})
