"""Hyper-connections, with the shared expert as the only thing that they mix in."""

from functools import partial

import torch

from . import Probe
from .weights import EMBEDDED, Weights, config

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


def slow(weights: Weights) -> None:
    """comb nearly triangular, so that Sinkhorn is far from its end after 20 steps; some of its entries, and all weights
    of what is read, no larger than eps. The streams are large, so that the eps of no norm shows."""
    n = weights.config["hc_mult"]
    shared_only(weights)
    weights.scale("embed.weight", EMBEDDED)
    weights.scale(r".*\.shared_experts\.w2\.weight", EMBEDDED)
    above = torch.ones(n, n).triu().bool().flatten()

    def triangular(x):
        y = x.clone()
        y[:n] -= 12
        y[2 * n :] = torch.where(above, x[2 * n :], x[2 * n :] - 12)
        return y

    weights.change(r".*hc_(attn|ffn)_base", triangular)
    weights.change("hc_head_base", lambda x: x - 12)


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


def norm(weights: Weights, rms: float) -> None:
    """Streams of this size, the last mixing's too; eps is near its square."""
    dynamic(weights)
    head_fn = Weights(weights.config, 1).tensors["hc_head_fn"]
    weights.tensors["hc_head_fn"] = head_fn
    weights.scale("embed.weight", rms)
    weights.scale(r".*\.shared_experts\.w2\.weight", rms)


PROBES = (
    Probe(
        "hc.post",
        "how much of a sub-layer enters each stream",
        "4",
        config(0, hc_sinkhorn_iters=20),
        post,
        needs=NEEDED,
        **SHORT,
    ),
    Probe(
        "hc.pre",
        "what a sub-layer reads of each stream",
        "4",
        config(0, 0, hc_sinkhorn_iters=20),
        pre,
        needs=("hc.post",),
        **SHORT,
    ),
    Probe(
        "hc.comb",
        "the mixing matrix: rows are sources, columns destinations",
        "4",
        config(0, 0, hc_sinkhorn_iters=20),
        shared_only,
        needs=("hc.pre",),
        **SHORT,
    ),
    Probe(
        "hc.sinkhorn",
        "Sinkhorn's order and count; hc_eps, in all its places",
        "4",
        config(0, 0, 0, hc_sinkhorn_iters=20),
        slow,
        needs=("hc.comb",),
        **SHORT,
    ),
    Probe(
        "hc.sinkhorn_values",
        "another count of Sinkhorn's steps than 20, another hc_eps than 1e-6",
        "4",
        config(0, 0, 0, hc_sinkhorn_iters=2, hc_eps=0.03),
        shared_only,
        needs=("hc.sinkhorn",),
        beyond="every published config has hc_sinkhorn_iters 20 and hc_eps 1e-6",
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
        config(0, 0, hc_sinkhorn_iters=20),
        head,
        needs=("hc.comb",),
        **SHORT,
    ),
    Probe(
        "hc.norm",
        "the norm of the streams under the coefficients, and its eps",
        "4",
        config(0, 0, hc_sinkhorn_iters=20),
        partial(norm, rms=1e-3),
        needs=("hc.dynamic", "hc.head", "norm.eps"),
        **SHORT,
    ),
    Probe(
        "hc.norm_eps",
        "norm_eps in the norm of the streams, not hc_eps",
        "4",
        config(0, 0, hc_sinkhorn_iters=20, rms_norm_eps=0.05, hc_eps=1e-3),
        partial(norm, rms=0.2),
        needs=("hc.norm", "norm.eps_value"),
        beyond="in every published config the two are equal",
        **SHORT,
    ),
)
