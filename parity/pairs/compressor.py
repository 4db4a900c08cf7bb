"""The compressor at ratio 4 with overlapping windows, and at every other ratio without; in any chunking."""

from ..cases.schedules import last
from ..cases.strategies import cases
from ..cases.strategies.configs import pick
from . import Pair

# Ratios without overlap: 128 as published, small ones because they cross more boundaries in fewer tokens.
PLAIN = pick((8,), (2,), (3,), (5,), (128,))


def token_inputs(case, dtype):
    """What a sub-layer reads: [B, S, D]."""
    return {"x": case.floats("x", case.batch, case.tokens, case.config["hidden_size"], dtype=dtype)}


def compute(side, case, given):
    ratio = case.config["compress_ratios"][0]
    compressor = side.model.layers[0].attn.compressor
    x, frequencies = side.array(given["x"]), side.frequencies(ratio)
    state = side.compressor_state(ratio) if case.cached else None
    return {"rows": last(side, case, lambda start, stop: compressor(x[:, start:stop], start, frequencies, state))}


PAIRS = (
    Pair(
        name="compressor.overlap",
        title="compressor at ratio 4, overlapping windows",
        spec="7",
        cases=lambda profile: cases(profile, (4,), complete_group=True),
        inputs=token_inputs,
        compute=compute,
        contains=("rms_norm", "rope"),
    ),
    Pair(
        name="compressor.plain",
        title="compressor at ratio 128 and others",
        spec="7",
        cases=lambda profile: cases(profile, PLAIN, complete_group=True),
        inputs=token_inputs,
        compute=compute,
        contains=("rms_norm", "rope"),
    ),
)
