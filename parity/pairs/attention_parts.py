"""The parts of attention: queries, window rows, softmax with a sink, grouped output."""

import torch

from ..cases.strategies import cases
from ..cases.strategies.configs import pick
from . import Pair
from .compressor import token_inputs

KINDS = pick((0,), (4,), (8,))


def queries(side, case, given):
    latent, q = side.model.layers[0].attn.queries(side.array(given["x"]), side.positions(0, case.tokens))
    return {"qr": side.tensor(latent), "q": side.tensor(q)}


def window_kv(side, case, given):
    return {
        "kv": side.tensor(side.model.layers[0].attn.window_kv(side.array(given["x"]), side.positions(0, case.tokens)))
    }


def softmax_inputs(case, dtype):
    """More keys than queries, each query with a mask of its own that holds at least one key; sinks far from zero."""
    heads, dim, keys = case.config["num_attention_heads"], case.config["head_dim"], case.tokens + 5
    mask = torch.rand(case.batch, case.tokens, keys, generator=case.random("mask")) < 0.6
    mask[..., 0] = True
    return {
        "q": case.floats("q", case.batch, case.tokens, heads, dim, dtype=dtype, scale=2.0),
        "keys": case.floats("keys", case.batch, keys, dim, dtype=dtype, scale=min(case.scale, 3.0)),
        "mask": mask,
        "sink": case.floats("sink", heads, dtype="float32", scale=3.0),
    }


def sink_attention(side, case, given):
    mask = side.integers(given["mask"].int()) > 0
    attend = side.package.attention.sink_attention
    q, keys, sink = side.array(given["q"]), side.array(given["keys"]), side.wide_array(given["sink"])
    return {"o": side.tensor(attend(q, keys, mask, sink, case.config["head_dim"] ** -0.5))}


def output_inputs(case, dtype):
    heads, dim = case.config["num_attention_heads"], case.config["head_dim"]
    return {"o": case.floats("o", case.batch, case.tokens, heads, dim, dtype=dtype)}


def output(side, case, given):
    return {"y": side.tensor(side.model.layers[0].attn.output(side.array(given["o"]), side.positions(0, case.tokens)))}


PAIRS = (
    Pair(
        name="attention.queries",
        title="low-rank queries, per-head norm",
        spec="6.2",
        cases=lambda profile: cases(profile, KINDS, incremental=False),
        inputs=token_inputs,
        compute=queries,
        contains=("rms_norm", "rope"),
    ),
    Pair(
        name="attention.window_kv",
        title="shared key-value rows of the window",
        spec="6.3",
        cases=lambda profile: cases(profile, KINDS, incremental=False),
        inputs=token_inputs,
        compute=window_kv,
        contains=("rms_norm", "rope"),
    ),
    Pair(
        name="attention.softmax",
        title="softmax with a sink",
        spec="6.5",
        cases=lambda profile: cases(profile, incremental=False, most_tokens=64),
        inputs=softmax_inputs,
        compute=sink_attention,
    ),
    Pair(
        name="attention.output",
        title="inverse rotation, grouped low-rank output",
        spec="6.6",
        cases=lambda profile: cases(profile, KINDS, incremental=False),
        inputs=output_inputs,
        compute=output,
        contains=("rope",),
    ),
)
