"""RMSNorm."""

from ..cases.strategies import cases
from . import Pair


def inputs(case, dtype):
    dim = case.config["hidden_size"]
    return {
        "x": case.floats("x", case.batch, case.tokens, dim, dtype=dtype),
        "weight": 1 + case.floats("weight", dim, dtype=dtype, scale=0.5),
    }


def compute(side, case, given):
    weight = side.wide_array(given["weight"])
    return {"y": side.tensor(side.package.norm.rms_norm(side.array(given["x"]), weight, case.config["rms_norm_eps"]))}


PAIR = Pair(
    name="rms_norm",
    title="RMSNorm",
    spec="5",
    cases=lambda profile: cases(profile, incremental=False),
    inputs=inputs,
    compute=compute,
)
