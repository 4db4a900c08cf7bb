"""The published configs are accepted; every kind of bad config gets its own sentence.

Run: pytest tests/test_reference_config.py
"""

import contextlib
import json
import math

import pytest
from helpers import sentence, tiny

from parity.cases.resources import fixtures_path
from reference_torch import Config, ConfigError, Options
from reference_torch.config import FIXED

GOOD = tiny((0, 4, 8), mtp=1)
LEAVE_OUT = object()


def changed(**keys) -> dict:
    """A good config with these keys replaced or left out."""
    return {key: value for key, value in (GOOD | keys).items() if value is not LEAVE_OUT}


def yarn(**keys) -> dict:
    scaling = GOOD["rope_scaling"] | keys
    return {"rope_scaling": {key: value for key, value in scaling.items() if value is not LEAVE_OUT}}


@pytest.mark.parametrize(
    ("name", "layers", "ratios"),
    [
        ("flash", 43, (0, 0, *(4, 128) * 20, 4, 0)),
        ("pro", 61, (128, 128, *(4, 128) * 29, 4, 0)),
    ],
)
def test_published_configs(name, layers, ratios):
    path = fixtures_path() / "configs" / f"{name}.json"
    config = Config.load(path)
    assert (config.num_hidden_layers, config.num_nextn_predict_layers) == (layers, 1)
    assert config.compress_ratios == ratios
    assert config.ratio(2) == 4
    assert config.rope_scaling.original_max_position_embeddings == 65536
    raw = json.loads(path.read_text())
    plain = Config.__dataclass_fields__.keys() - {"compress_ratios", "rope_scaling"}
    read = {key: raw[key] for key in plain}
    assert read == {key: getattr(config, key) for key in read}


def test_hash_routed_layers_are_the_first():
    """By layer number alone (spec 10), in which the MTP block is the one after the backbone's."""
    config = Config.from_dict(changed(num_hash_layers=1))
    assert [config.is_hash_routed(layer) for layer in range(3)] == [True, False, False]
    every = Config.from_dict(changed(num_hash_layers=9))
    assert [every.is_hash_routed(layer) for layer in range(3)] == [True, True, True]


def test_no_yarn():
    assert Config.from_dict(changed(rope_scaling=None)).rope_scaling is None


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_both_spellings_of_the_scaling_type(key):
    scaling = yarn(type=LEAVE_OUT)["rope_scaling"] | {key: "yarn"}
    assert Config.from_dict(changed(rope_scaling=scaling)).rope_scaling.factor == 16


TAKE = "take it from the published config.json of the model."
SENTENCES = {
    # keys
    "misspelt": (
        {"slidng_window": 5},
        "config key 'slidng_window' is unknown; did you mean 'sliding_window'?",
    ),
    "unknown": (
        {"vision": {}},
        "config key 'vision' is unknown; remove it, or use a config of model_type deepseek_v4.",
    ),
    "missing": ({"index_topk": LEAVE_OUT}, f"config key 'index_topk' is missing; {TAKE}"),
    "missing rope_scaling": ({"rope_scaling": LEAVE_OUT}, f"config key 'rope_scaling' is missing; {TAKE}"),
    # another architecture
    "model type": (
        {"model_type": "deepseek_v3"},
        "config key 'model_type' is 'deepseek_v3'; DeepSeek-V4 defines only 'deepseek_v4'.",
    ),
    "several KV heads": (
        {"num_key_value_heads": 2},
        "config key 'num_key_value_heads' is 2; DeepSeek-V4 defines only 1.",
    ),
    "tied": (
        {"tie_word_embeddings": True},
        "config key 'tie_word_embeddings' is True; DeepSeek-V4 defines only False.",
    ),
    "scoring function": (
        {"scoring_func": "relu"},
        "config key 'scoring_func' is 'relu'; it must be one of sqrtsoftplus, sigmoid, softmax.",
    ),
    # types
    "bool for int": ({"hidden_size": True}, "config key 'hidden_size' is True; it must be an integer."),
    "float for int": ({"hc_mult": 4.0}, "config key 'hc_mult' is 4.0; it must be an integer."),
    "text for int": ({"vocab_size": "48"}, "config key 'vocab_size' is '48'; it must be an integer."),
    "null for int": ({"head_dim": None}, "config key 'head_dim' is None; it must be an integer."),
    "huge int": (
        {"vocab_size": 2**31},
        "config key 'vocab_size' is 2147483648; it must be at most 16777216.",
    ),
    "bool for number": ({"hc_eps": False}, "config key 'hc_eps' is False; it must be a finite number."),
    "NaN": ({"rms_norm_eps": math.nan}, "config key 'rms_norm_eps' is nan; it must be a finite number."),
    "infinity": ({"rope_theta": math.inf}, "config key 'rope_theta' is inf; it must be a finite number."),
    "no float is as large": (
        {"swiglu_limit": 10**400},
        "config key 'swiglu_limit' is 100000000000000000...0000000000000000000; it must be a finite number.",
    ),
    "list for number": ({"hc_eps": [1]}, "config key 'hc_eps' is [1]; it must be a finite number."),
    "number for text": ({"scoring_func": 1}, "config key 'scoring_func' is 1; it must be a string."),
    "ratios are a number": (
        {"compress_ratios": 4},
        "config key 'compress_ratios' must be a list of integers, one a layer.",
    ),
    "a ratio is a bool": (
        {"compress_ratios": [0, True, 8]},
        "config key 'compress_ratios' must be a list of integers, one a layer.",
    ),
    "a ratio is huge": (
        {"compress_ratios": [0, 2**31, 8]},
        "config key 'compress_ratios' has an entry above 1048576.",
    ),
    # values that contradict each other
    "zero": ({"o_groups": 0}, "config key 'o_groups' is 0; it must be positive."),
    "zero base": ({"rope_theta": 0}, "config key 'rope_theta' is 0.0; it must be positive."),
    "negative": ({"swiglu_limit": -1}, "config key 'swiglu_limit' is -1.0; it must not be negative."),
    "negative ratio": (
        {"compress_ratios": [0, -4, 8]},
        "config key 'compress_ratios' has a negative entry; use 0 for a window-only layer.",
    ),
    "too few ratios": (
        {"compress_ratios": [0, 4]},
        "config key 'compress_ratios' has 2 entries; it needs 3: one for each of num_hidden_layers=2 and "
        "num_nextn_predict_layers=1.",
    ),
    "groups": (
        {"num_attention_heads": 5},
        "config key 'num_attention_heads' is 5, which o_groups=2 does not divide; the output projection "
        "needs equal groups of heads.",
    ),
    "odd rope": (
        {"qk_rope_head_dim": 7},
        "config key 'qk_rope_head_dim' is 7; rotation needs pairs of channels.",
    ),
    "wide rope": ({"qk_rope_head_dim": 18}, "config key 'qk_rope_head_dim' is 18, more than head_dim=16."),
    "rope wider than the indexer": (
        {"index_head_dim": 4},
        "config key 'qk_rope_head_dim' is 8, more than index_head_dim=4.",
    ),
    "experts": (
        {"num_experts_per_tok": 7},
        "config key 'num_experts_per_tok' is 7, more than n_routed_experts=6.",
    ),
    # YaRN
    "scaling is text": (
        {"rope_scaling": "yarn"},
        "config key 'rope_scaling' must be an object with YaRN's parameters, or null.",
    ),
    "other scaling": (
        yarn(type="linear"),
        "config key 'rope_scaling' has type 'linear'; DeepSeek-V4 defines only 'yarn'.",
    ),
    "no scaling type": (
        yarn(type=LEAVE_OUT),
        "config key 'rope_scaling' has type None; DeepSeek-V4 defines only 'yarn'.",
    ),
    "mscale": (
        yarn(mscale=1.0),
        "config key 'rope_scaling' holds 'mscale'; DeepSeek-V4 defines only factor, "
        "original_max_position_embeddings, beta_fast, beta_slow.",
    ),
    "scaling lacks": (yarn(beta_slow=LEAVE_OUT), "config key 'rope_scaling' lacks 'beta_slow'."),
    "scaling is NaN": (
        yarn(factor=math.nan),
        "config key 'rope_scaling' has factor=nan; it must be a number, zero or more.",
    ),
    "scaling is negative": (
        yarn(original_max_position_embeddings=-1),
        "config key 'rope_scaling' has original_max_position_embeddings=-1; it must be a number, zero or more.",
    ),
    "scaling is a bool": (
        yarn(beta_fast=True),
        "config key 'rope_scaling' has beta_fast=True; it must be a number, zero or more.",
    ),
    "no turns": (yarn(beta_fast=0), "config key 'rope_scaling' has beta_fast=0; it must be positive."),
    "shrinking": (yarn(factor=0.5), "config key 'rope_scaling' has factor=0.5; it must be at least 1."),
    "base without a logarithm": (
        {"compress_rope_theta": 1},
        "config key 'compress_rope_theta' is 1.0; YaRN needs a base above 1.",
    ),
}


@pytest.mark.parametrize(("keys", "expected"), SENTENCES.values(), ids=SENTENCES)
def test_sentence(keys, expected, tmp_path):
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(changed(**keys))
    assert str(caught.value) == expected
    path = tmp_path / "config.json"
    path.write_text(json.dumps(changed(**keys)))
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path)
    assert str(caught.value) == f"{path}: {expected}"


@pytest.mark.parametrize("key", list(Config.__dataclass_fields__))
def test_every_key_is_needed(key):
    assert sentence(ConfigError, Config.from_dict, changed(**{key: LEAVE_OUT})) == (
        f"config key '{key}' is missing; {TAKE}"
    )


@pytest.mark.parametrize("key", FIXED)
def test_what_has_one_value_may_be_left_out(key):
    assert Config.from_dict(changed(**{key: LEAVE_OUT})) == Config.from_dict(changed(**{key: FIXED[key]}))


JUNK = [None, True, -1, 0, 1.5, math.nan, -math.inf, 10**400, 2**70, "x", [], {}, [1], {"a": 1}]


@pytest.mark.parametrize("key", [*Config.__dataclass_fields__, *FIXED])
def test_no_value_is_met_with_anything_but_a_sentence(key):
    for value in JUNK:
        for keys in ({key: value}, yarn(**{key: value}), yarn(beta_fast=value), yarn(factor=value)):
            with contextlib.suppress(ConfigError):
                Config.from_dict(changed(**keys))


@pytest.mark.parametrize("whole", [None, [], "x", 3])
def test_whole_config_of_another_type(whole):
    assert sentence(ConfigError, Config.from_dict, whole) == (
        f"the config is a {type(whole).__name__}; it must be a JSON object."
    )


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b'{"a": 1,}', b"\xff\xfe", b"[" * 100000, b'{"vocab_size": ' + b"1" * 5000 + b"}"],
    ids=["empty", "cut off", "comma", "not UTF-8", "deep", "many digits"],
)
def test_file_that_is_not_json(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    said = sentence(ConfigError, Config.load, tmp_path)
    assert said.startswith(f"{tmp_path}/config.json is not valid JSON: ")


def test_file_that_is_not_there(tmp_path):
    path = tmp_path / "config.json"
    said = sentence(ConfigError, Config.load, path)
    assert said == f"{path} cannot be read: No such file or directory."


def test_options():
    assert sentence(ConfigError, lambda: Options(quantization_simulation="fp8")) == (
        "quantization_simulation is 'fp8'; it must be one of none, rows, published."
    )
