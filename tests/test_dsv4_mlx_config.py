"""ModelArgs as mlx-lm makes them: unknown keys are ignored, bad values get a sentence.

Run: pytest tests/test_dsv4_mlx_config.py
"""

import contextlib
import json
import math

import pytest
from helpers import sentence, tiny

from dsv4_mlx import ModelArgs
from parity.cases.resources import fixtures_path
from reference_torch import Config

GOOD = tiny((0, 4, 8), mtp=1)


def yarn(**keys) -> dict:
    return {"rope_scaling": GOOD["rope_scaling"] | keys}


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_published_configs_mean_the_same_to_both_packages(name):
    path = fixtures_path() / "configs" / f"{name}.json"
    args, config = ModelArgs.from_dict(json.loads(path.read_text())), Config.load(path)
    for key in Config.__dataclass_fields__.keys() - {"compress_ratios", "rope_scaling"}:
        assert getattr(args, key) == getattr(config, key)
    assert tuple(args.compress_ratios) == config.compress_ratios
    for key in config.rope_scaling.__dataclass_fields__:
        assert args.rope_scaling[key] == getattr(config.rope_scaling, key)
    assert (args.model_type, args.torch_dtype) == ("deepseek_v4", "bfloat16")


def test_unknown_keys_are_ignored():
    extra = {"quantization_method": "fp8", "vision": 1, "eos_token_id": [1, 2]}
    assert ModelArgs.from_dict(GOOD | extra) == ModelArgs.from_dict(GOOD)


def test_what_a_config_may_leave_out():
    """Keys that the inference program has defaults for, and those with one legal value (spec 1)."""
    optional = ("rms_norm_eps", "hc_eps", "num_nextn_predict_layers", "model_type")
    raw = {key: value for key, value in tiny((0, 4)).items() if key not in optional}
    args = ModelArgs.from_dict(raw)
    assert (args.rms_norm_eps, args.hc_eps, args.num_nextn_predict_layers) == (1e-6, 1e-6, 0)
    assert (args.shared_expert_clamp, args.quantization_simulation) == (True, "none")


def test_missing_keys_are_named_together():
    raw = {key: value for key, value in GOOD.items() if key not in ("hc_mult", "head_dim")}
    assert sentence(ValueError, ModelArgs.from_dict, raw) == "The config lacks head_dim, hc_mult."


SENTENCES = {
    "bool": ({"hidden_size": True}, "hidden_size must be an integer of at least 1, not True."),
    "float": ({"hc_mult": 4.0}, "hc_mult must be an integer of at least 1, not 4.0."),
    "text": ({"index_topk": "3"}, "index_topk must be an integer of at least 1, not '3'."),
    "zero": ({"o_groups": 0}, "o_groups must be an integer of at least 1, not 0."),
    "negative": ({"num_hash_layers": -1}, "num_hash_layers must be an integer of at least 0, not -1."),
    "NaN": ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a finite number, not nan."),
    "no float is as large": (
        {"rope_theta": 10**400},
        "rope_theta must be a finite number, not 100000000000000000...0000000000000000000.",
    ),
    "no base": ({"rope_theta": 0}, "rope_theta must be above 0, not 0."),
    "KV heads": ({"num_key_value_heads": 8}, "num_key_value_heads must be 1 in DeepSeek-V4, not 8."),
    "tied": ({"tie_word_embeddings": True}, "tie_word_embeddings must be False in DeepSeek-V4, not True."),
    "ratios are a number": ({"compress_ratios": 4}, "compress_ratios must be a list of integers, not 4."),
    "too few ratios": (
        {"compress_ratios": [0, 4]},
        "compress_ratios has 2 entries, but num_hidden_layers + num_nextn_predict_layers is 2 + 1.",
    ),
    "negative ratio": (
        {"compress_ratios": [0, -4, 8]},
        "compress_ratios must be integers from 0 to 1048576, not [0, -4, 8].",
    ),
    "groups": ({"num_attention_heads": 5}, "num_attention_heads 5 is not divisible by o_groups 2."),
    "odd rope": ({"qk_rope_head_dim": 7}, "qk_rope_head_dim 7 is odd, but channels rotate in pairs."),
    "wide rope": ({"qk_rope_head_dim": 18}, "qk_rope_head_dim 18 is more than head_dim 16."),
    "rope wider than the indexer": (
        {"index_head_dim": 4},
        "qk_rope_head_dim 8 is more than index_head_dim 4.",
    ),
    "experts": ({"num_experts_per_tok": 7}, "num_experts_per_tok 7 is more than n_routed_experts 6."),
    "scoring": ({"scoring_func": "relu"}, "scoring_func 'relu' is none of sqrtsoftplus, sigmoid, softmax."),
    "simulation": (
        {"quantization_simulation": "fp8"},
        "quantization_simulation 'fp8' is none of none, rows, published.",
    ),
    "no Hadamard": (
        {"quantization_simulation": "published", "index_head_dim": 24},
        "index_head_dim 24 is no power of 2, as its Hadamard rotation needs.",
    ),
    "scaling is text": ({"rope_scaling": "yarn"}, "rope_scaling must be an object or null, not 'yarn'."),
    "other scaling": (yarn(type="linear"), "rope_scaling is of type 'linear', but DeepSeek-V4 knows yarn only."),
    "scaling lacks": (
        {"rope_scaling": {"type": "yarn", "factor": 16, "beta_fast": 32}},
        "rope_scaling lacks original_max_position_embeddings, beta_slow.",
    ),
    "no turns": (yarn(beta_fast=0), "rope_scaling has beta_fast 0, which YaRN cannot use."),
    "shrinking": (yarn(factor=0.5), "rope_scaling has factor 0.5, which YaRN cannot use."),
    "base without a logarithm": (
        {"compress_rope_theta": 1},
        "compress_rope_theta is 1, but YaRN needs a base above 1.",
    ),
}


@pytest.mark.parametrize(("keys", "expected"), SENTENCES.values(), ids=SENTENCES)
def test_sentence(keys, expected):
    assert sentence(ValueError, ModelArgs.from_dict, GOOD | keys) == expected


@pytest.mark.parametrize("whole", [None, [], "x", 3])
def test_whole_config_of_another_type(whole):
    assert sentence(ValueError, ModelArgs.from_dict, whole) == f"The config must be a JSON object, not {whole!r}."


JUNK = [None, True, -1, 0, 1.5, math.nan, -math.inf, 10**400, 2**70, "x", [], {}, [1], {"a": 1}]


@pytest.mark.parametrize("key", GOOD)
def test_no_value_is_met_with_anything_but_a_sentence(key):
    for value in JUNK:
        for keys in ({key: value}, yarn(beta_slow=value), yarn(factor=value), yarn(type=value)):
            with contextlib.suppress(ValueError):
                ModelArgs.from_dict(GOOD | keys)
