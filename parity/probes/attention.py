"""Window attention, piece by piece: what is seen, the sink, the output's groups, the queries, the norms' eps."""

from . import Probe
from .weights import Weights, config

WINDOW = {"tokens": 29, "prompt": 5, "chunks": (7, 1, 9, 3, 9)}


def window(weights: Weights) -> None:
    """Every row that is seen weighs the same, every head does the same."""
    weights.only_attention()
    weights.without_positions()
    weights.without_queries()
    weights.without_sinks()
    weights.outputs_alike()


def sink(weights: Weights) -> None:
    """Heads differ by their sinks, and by nothing that a wrong grouping would show."""
    weights.only_attention()
    weights.without_positions()
    weights.without_queries()
    weights.outputs_alike()


def output(weights: Weights) -> None:
    """Heads differ by their sinks."""
    weights.only_attention()
    weights.without_positions()
    weights.without_queries()


def queries(weights: Weights) -> None:
    """Content only: nothing rotates."""
    weights.only_attention()
    weights.without_positions()


def eps(weights: Weights) -> None:
    """Latents and rows whose mean square is near eps."""
    queries(weights)
    weights.scale(r".*\.attn\.(wq_a|wkv|wq_b)\.weight", 0.2)


PROBES = (
    Probe(
        "attention.window",
        "which positions of the window are seen",
        "6.4",
        config(0),
        window,
        needs=("embedding",),
        **WINDOW,
    ),
    Probe(
        "attention.sink",
        "the sink takes mass and gives no value",
        "6.5",
        config(0),
        sink,
        needs=("attention.window",),
        **WINDOW,
    ),
    Probe(
        "attention.output",
        "the grouped output projection",
        "6.6",
        config(0),
        output,
        needs=("attention.sink",),
        **WINDOW,
    ),
    Probe(
        "attention.queries",
        "low-rank queries, their per-head norm, the softmax's scale",
        "6.2",
        config(0),
        queries,
        needs=("attention.output",),
        **WINDOW,
    ),
    Probe(
        "norm.eps",
        "the eps of the norms within attention",
        "5",
        config(0, rms_norm_eps=0.05),
        eps,
        needs=("attention.queries",),
        **WINDOW,
    ),
)
