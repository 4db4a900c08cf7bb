"""The router: scores by three functions, choice by biased score or by token id, unbiased weights."""

from ..cases.strategies import cases
from . import Pair
from .compressor import token_inputs

# Beyond 10, all the chosen scores of a token may be 0 in float32, and nothing defines their normalised weights.
NO_UNDERFLOW = (1.0, 10.0, 1e-2, 10.0)


def compute(side, case, given):
    """The weights as a tap; scores and chosen experts are recorded where they are made."""
    weights, _ = side.model.layers[0].ffn.gate(side.array(given["x"]), side.integers(case.ids()))
    return {"weights": side.tensor(weights)}


PAIR = Pair(
    name="router",
    title="router: scores, choice of experts, weights",
    spec="10",
    cases=lambda profile: cases(profile, incremental=False, scales=NO_UNDERFLOW),
    inputs=token_inputs,
    compute=compute,
)
