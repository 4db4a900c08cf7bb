"""A block of each layer kind, in any chunking."""

from ..cases.schedules import calls
from ..cases.strategies import cases
from ..cases.strategies.configs import pick
from . import Pair
from .hyper_connection import stream_inputs


def compute(side, case, given):
    block = side.model.layers[0]
    streams, ids = side.array(given["streams"]), side.integers(case.ids())
    state = side.attention_state(case.config["compress_ratios"][0]) if case.cached else None
    return {
        "streams": calls(
            side, case, lambda start, stop: block(streams[:, start:stop], ids[:, start:stop], start, state)
        )
    }


PAIR = Pair(
    name="block",
    title="block: two mixings around attention and experts",
    spec="3",
    cases=lambda profile: cases(profile, pick((0,), (4,), (8,))),
    inputs=stream_inputs,
    compute=compute,
    contains=(
        "rms_norm",
        "hyper_connection.pre",
        "hyper_connection.post",
        "attention.window",
        "attention.overlap",
        "attention.plain",
        "moe",
    ),
)
