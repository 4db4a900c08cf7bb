"""The whole model: layer lists like Flash's and like Pro's, in any chunking."""

from ..cases.schedules import calls
from ..cases.strategies import cases
from ..cases.strategies.configs import pick
from . import Pair

LISTS = pick((0, 4), (0, 0, 4, 8), (8, 8, 4), (0, 4, 128, 4), (128, 4, 4))


def compute(side, case, given):
    ids = side.integers(case.ids())
    state = side.model_state() if case.cached else None
    return {"logits": calls(side, case, lambda start, stop: side.model(ids[:, start:stop], state))}


PAIR = Pair(
    name="model",
    title="whole model",
    spec="3",
    cases=lambda profile: cases(profile, LISTS),
    inputs=lambda case, dtype: {},
    compute=compute,
    contains=("block", "hyper_connection.head", "rms_norm"),
)
