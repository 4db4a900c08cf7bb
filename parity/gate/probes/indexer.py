"""The indexer's choice: more rows than it may take."""

from . import Probe
from .compressor import SMALL
from .weights import FAR_FROM_EPS, Weights, config

ROWS = {"tokens": 61, "prompt": 41, "chunks": (17, 1, 9, 2, 18, 14)}
FEW = config(4, index_topk=3)
NEEDED = ("rope.overlap_rows",)


def compressed(weights: Weights) -> None:
    """The indexer's own keys without gates or rotation: its scores are all there is to get wrong."""
    weights.only_attention()
    weights.zero(r".*\.indexer\.compressor\.(wgate\.weight|ape)")
    still(weights)


def still(weights: Weights) -> None:
    """Nothing in the channels of the indexer's queries that rotate."""
    dim, rope = weights.config["index_head_dim"], weights.config["qk_rope_head_dim"]

    def blind(x):
        x = x.clone()
        x.unflatten(0, (-1, dim))[:, dim - rope :] = 0
        return x

    weights.change(r".*\.indexer\.wq_b\.weight", blind)


def gated(weights: Weights) -> None:
    """The indexer's own keys with gates and ape."""
    weights.only_attention()
    still(weights)


def eps(weights: Weights) -> None:
    """The indexer's pooled keys are about 1e-3, and the square of that is the eps of their norm."""
    compressed(weights)
    weights.scale(r".*\.indexer\.compressor\.wkv\.weight", SMALL / FAR_FROM_EPS)


def large(rows: int, profile: str, name: str) -> Probe:
    """So many rows that ports which switch algorithm at a size do it; as many heads as it takes for no score, not even
    one of a block's mean, to be 0 because all heads are."""
    tokens = rows * 4 + 130
    prompt = tokens - 10
    step = 256
    chunks = (*[step] * (prompt // step), prompt % step, 3, 1, 6)
    return Probe(
        name,
        f"the choice among {rows} rows and more",
        "9",
        config(4, index_topk=8, num_attention_heads=2, index_n_heads=8),
        Weights.only_attention,
        tokens=tokens,
        prompt=prompt,
        chunks=chunks,
        calls=chunks,
        needs=("indexer.rope",),
        profile=profile,
        schedules=("cached", "decode", "chunks"),
    )


PROBES = (
    Probe("indexer.scores", "which rows are chosen", "9", FEW, compressed, needs=NEEDED, **ROWS),
    Probe("indexer.compressor", "the indexer's own pooling", "9", FEW, gated, needs=("indexer.scores",), **ROWS),
    Probe(
        "indexer.rope",
        "rotation of the indexer's queries and keys",
        "9",
        FEW,
        Weights.only_attention,
        needs=("indexer.compressor",),
        **ROWS,
    ),
    Probe(
        "indexer.eps",
        "the eps of the norm of the indexer's keys",
        "7, 9",
        FEW,
        eps,
        needs=("indexer.scores", "compressor.eps"),
        **ROWS,
    ),
    # Ports that keep the best 16 blocks of 64 rows from 1,024 rows on drop none before the 17th block is complete.
    large(1152, "full", "indexer.large"),
    large(8256, "exhaustive", "indexer.huge"),
)
