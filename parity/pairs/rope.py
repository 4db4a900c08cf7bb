"""Rotary positions: the tables of both layer kinds, the rotation, and its inverse."""

import dataclasses

from hypothesis import strategies as st

from ..cases.strategies import cases
from . import Pair


@st.composite
def far_cases(draw, profile):
    """Cases whose first token lies anywhere, so that angles are not small."""
    return dataclasses.replace(
        draw(cases(profile, (0, 4), incremental=False)), start=draw(st.sampled_from((0, 1, 117, 3000)))
    )


def inputs(case, dtype):
    heads, dim = case.config["num_attention_heads"], case.config["head_dim"]
    return {
        "heads": case.floats("heads", case.batch, case.tokens, heads, dim, dtype=dtype),
        "row": case.floats("row", case.batch, case.tokens, dim, dtype=dtype),
    }


def compute(side, case, given):
    rotate = side.package.rope.rotate
    heads, row = side.array(given["heads"]), side.array(given["row"])
    positions = side.positions(case.start, case.start + case.tokens)
    window, compressed = side.frequencies(0), side.frequencies(4)
    return {
        "table.window": side.tensor(window),
        "table.compressed": side.tensor(compressed),
        "window": side.tensor(rotate(heads, positions, window)),
        "compressed": side.tensor(rotate(row, positions, compressed)),
        "inverse": side.tensor(rotate(heads, positions, compressed, inverse=True)),
    }


PAIR = Pair(
    name="rope",
    title="RoPE and YaRN by layer kind, and the inverse",
    spec="5",
    cases=far_cases,
    inputs=inputs,
    compute=compute,
)
