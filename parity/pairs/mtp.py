"""The multi-token-prediction block with the shared embedding and head, in any chunking."""

from ..cases.schedules import calls
from ..cases.strategies import cases
from . import Pair
from .hyper_connection import stream_inputs


def compute(side, case, given):
    streams, ids = side.array(given["streams"]), side.integers(case.ids())
    state = side.mtp_state() if case.cached else None
    return {
        "logits": calls(
            side, case, lambda start, stop: side.model.mtp_logits(streams[:, start:stop], ids[:, start:stop], state)
        )
    }


PAIR = Pair(
    name="mtp",
    title="multi-token-prediction block",
    spec="11",
    cases=lambda profile: cases(profile, (0, 0), mtp=1),
    inputs=stream_inputs,
    compute=compute,
    contains=("block", "hyper_connection.head"),
)
