"""Hyper-connections, with the shared expert as the only thing that they mix in."""

from . import Probe
from .weights import Weights, config

SHORT = {"tokens": 20, "prompt": 13, "chunks": (7, 1, 9, 3)}
NEEDED = ("experts.shared",)


def shared_only(weights: Weights) -> None:
    """The shared expert, below its clamp and no louder than the streams; mixing without any input."""
    weights.mute_attention()
    weights.mute_routed()
    weights.scale(r".*\.ffn\..*\.w[13]\.weight", 0.3)
    weights.scale(r".*\.shared_experts\.w2\.weight", 4.0)
    weights.zero(r".*hc_(attn|ffn|head)_fn")


def only_bases(weights: Weights, first: int, last: int, head: bool) -> None:
    """Of the bases, keep those of coefficients first .. last-1."""

    def kept(x):
        y = x * 0
        y[first:last] = x[first:last]
        return y

    weights.change(r".*hc_(attn|ffn)_base", kept)
    if not head:
        weights.zero("hc_head_base")


def post(weights: Weights) -> None:
    """post differs from stream to stream, all else is alike."""
    n = weights.config["hc_mult"]
    shared_only(weights)
    only_bases(weights, n, 2 * n, head=True)


def pre(weights: Weights) -> None:
    """pre and post differ from stream to stream."""
    n = weights.config["hc_mult"]
    shared_only(weights)
    only_bases(weights, 0, 2 * n, head=True)


def dynamic(weights: Weights) -> None:
    """Coefficients that depend on the streams."""
    shared_only(weights)
    fresh = Weights(weights.config, 1).tensors
    for name in weights.tensors:
        if name.endswith(("hc_attn_fn", "hc_ffn_fn")):
            weights.tensors[name] = fresh[name]


def head(weights: Weights) -> None:
    """Only the last mixing depends on the streams."""
    shared_only(weights)
    weights.tensors["hc_head_fn"] = Weights(weights.config, 1).tensors["hc_head_fn"]


def norm(weights: Weights) -> None:
    """Streams whose mean square is near eps, the last mixing's too."""
    dynamic(weights)
    head_fn = Weights(weights.config, 1).tensors["hc_head_fn"]
    weights.tensors["hc_head_fn"] = head_fn
    weights.scale("embed.weight", 0.2)
    weights.scale(r".*\.shared_experts\.w2\.weight", 0.2)


# Beside 1, float32 does not see it: hc_eps is what the probe of Sinkhorn is about.
NO_EPS = 1e-12

PROBES = (
    Probe(
        "hc.post",
        "how much of a sub-layer enters each stream",
        "4",
        config(0, hc_eps=NO_EPS),
        post,
        needs=NEEDED,
        **SHORT,
    ),
    Probe(
        "hc.pre",
        "what a sub-layer reads of each stream",
        "4",
        config(0, 0, hc_eps=NO_EPS),
        pre,
        needs=("hc.post",),
        **SHORT,
    ),
    Probe(
        "hc.comb",
        "the mixing matrix: rows are sources, columns destinations",
        "4",
        config(0, 0, 0, hc_sinkhorn_iters=20, hc_eps=NO_EPS),
        shared_only,
        needs=("hc.pre",),
        **SHORT,
    ),
    Probe(
        "hc.sinkhorn",
        "Sinkhorn's order and count; hc_eps, in all its places",
        "4",
        config(0, 0, 0, hc_sinkhorn_iters=2, hc_eps=0.03),
        shared_only,
        needs=("hc.comb",),
        **SHORT,
    ),
    Probe(
        "hc.dynamic",
        "coefficients from the streams",
        "4",
        config(0, 0, 0, hc_sinkhorn_iters=20),
        dynamic,
        needs=("hc.sinkhorn",),
        **SHORT,
    ),
    Probe(
        "hc.head",
        "the streams' last mixing",
        "4.3",
        config(0, 0, hc_eps=NO_EPS),
        head,
        needs=("hc.comb",),
        **SHORT,
    ),
    Probe(
        "hc.norm",
        "the norm of the streams under the coefficients: norm_eps, not hc_eps",
        "4",
        config(0, 0, rms_norm_eps=0.05, hc_eps=1e-3),
        norm,
        needs=("hc.dynamic", "hc.head", "norm.eps"),
        **SHORT,
    ),
)
