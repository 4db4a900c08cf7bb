"""A whole attention layer of each kind, in any chunking."""

from ..cases.schedules import calls
from ..cases.strategies import cases
from . import Pair
from .attention_parts import KINDS
from .compressor import PLAIN, token_inputs

PARTS = ("attention.queries", "attention.window_kv", "attention.softmax", "attention.output")


def compute(side, case, given):
    attention = side.model.layers[0].attn
    x = side.array(given["x"])
    state = side.attention_state(case.config["compress_ratios"][0]) if case.cached else None
    return {"y": calls(side, case, lambda start, stop: attention(x[:, start:stop], start, state))}


PAIRS = (
    Pair(
        name="attention.window",
        title="attention of a window-only layer",
        spec="6",
        cases=lambda profile: cases(profile, (0,)),
        inputs=token_inputs,
        compute=compute,
        contains=PARTS,
    ),
    Pair(
        name="attention.overlap",
        title="attention of a ratio-4 layer, rows by the indexer",
        spec="6",
        cases=lambda profile: cases(profile, (4,)),
        inputs=token_inputs,
        compute=compute,
        contains=(*PARTS, "compressor.overlap", "indexer"),
    ),
    Pair(
        name="attention.plain",
        title="attention of a ratio-128 layer, all rows",
        spec="6",
        cases=lambda profile: cases(profile, PLAIN),
        inputs=token_inputs,
        compute=compute,
        contains=(*PARTS, "compressor.plain"),
    ),
    Pair(
        name="attention.simulated",
        title="attention of each kind with the published fp8 and fp4 roundings",
        spec="9",
        cases=lambda profile: cases(profile, KINDS, simulation="published"),
        inputs=token_inputs,
        compute=compute,
        contains=("attention.window", "attention.overlap", "attention.plain", "fake_quant", "hadamard"),
    ),
)
