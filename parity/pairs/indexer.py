"""The indexer: its queries, its own compressed keys, the scores, and the rows that it selects."""

from ..cases.schedules import last
from ..cases.strategies import cases
from . import Pair


def inputs(case, dtype):
    shape = (case.batch, case.tokens)
    return {
        "x": case.floats("x", *shape, case.config["hidden_size"], dtype=dtype),
        "qr": case.floats("qr", *shape, case.config["q_lora_rank"], dtype=dtype, scale=1.0),
    }


def compute(side, case, given):
    """The keys as a tap; scores and selected rows are recorded where they are made."""
    indexer = side.model.layers[0].attn.indexer
    x, qr, frequencies = side.array(given["x"]), side.array(given["qr"]), side.frequencies(4)
    state = side.indexer_state(4) if case.cached else None
    for start, stop in case.spans():
        indexer(x[:, start:stop], qr[:, start:stop], start, frequencies, state)
    queries = indexer.queries(qr, side.positions(0, case.tokens), frequencies)
    keys_state = side.indexer_state(4) if case.cached else None
    keys = last(side, case, lambda start, stop: indexer.compressor(x[:, start:stop], start, frequencies, keys_state))
    return {"queries": side.tensor(queries), "keys": keys}


PAIR = Pair(
    name="indexer",
    title="indexer: scores and top-k of compressed rows",
    spec="9",
    cases=lambda profile: cases(profile, (4,), complete_group=True),
    inputs=inputs,
    compute=compute,
    contains=("compressor.overlap", "rope"),
)
