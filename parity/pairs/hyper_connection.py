"""Hyper-connections: Sinkhorn and the mixing before a sub-layer, the mixing after it, and the head."""

from ..cases.strategies import cases
from . import Pair


def stream_inputs(case, dtype):
    """Streams that differ from each other in direction and in size."""
    n, dim = case.config["hc_mult"], case.config["hidden_size"]
    streams = case.floats("streams", case.batch, case.tokens, n, dim, dtype=dtype)
    return {"streams": streams * streams.new_tensor([1.0, 0.5, 2.0, 0.25][:n])[:, None]}


def pre(side, case, given):
    u, post, comb = side.model.layers[0].hc_attn.pre(side.array(given["streams"]))
    return {"u": side.tensor(u), "post": side.tensor(post), "comb": side.tensor(comb)}


def post_inputs(case, dtype):
    n, shape = case.config["hc_mult"], (case.batch, case.tokens)
    return stream_inputs(case, dtype) | {
        "v": case.floats("v", *shape, case.config["hidden_size"], dtype=dtype),
        "post": 2 * case.floats("post", *shape, n, dtype="float32", scale=1.0).sigmoid().float().double(),
        "comb": case.floats("comb", *shape, n, n, dtype="float32", scale=1.0).softmax(-2).float().double(),
    }


def post(side, case, given):
    site = side.model.layers[0].hc_ffn
    v, streams = side.array(given["v"]), side.array(given["streams"])
    return {
        "streams": side.tensor(site.post(v, streams, side.wide_array(given["post"]), side.wide_array(given["comb"])))
    }


def head(side, case, given):
    return {"y": side.tensor(side.model.hc_head(side.array(given["streams"])))}


PAIRS = (
    Pair(
        name="hyper_connection.pre",
        title="hyper-connection before a sub-layer, Sinkhorn",
        spec="4.1",
        cases=lambda profile: cases(profile, incremental=False),
        inputs=stream_inputs,
        compute=pre,
    ),
    Pair(
        name="hyper_connection.post",
        title="hyper-connection after a sub-layer",
        spec="4.2",
        cases=lambda profile: cases(profile, incremental=False),
        inputs=post_inputs,
        compute=post,
    ),
    Pair(
        name="hyper_connection.head",
        title="hyper-connection head",
        spec="4.3",
        cases=lambda profile: cases(profile, incremental=False),
        inputs=stream_inputs,
        compute=head,
    ),
)
