"""Window attention, piece by piece: what is seen, the sink, the output's groups, the queries, the norms' eps."""

from functools import partial

from . import Probe
from .weights import FAR_FROM_EPS, LOUD, NORMED, Weights, config

WINDOW = {"tokens": 29, "prompt": 5, "chunks": (7, 1, 9, 3, 9)}
UNGROUPED = config(0, o_groups=1)  # so that no wrong grouping of heads can show


def window(weights: Weights) -> None:
    """Every row that is seen weighs the same, and every head does the same. The shared expert, which no later norm can
    make louder or softer, shows how much was seen beside what."""
    weights.only_attention()
    weights.tensors |= {
        name: tensor * LOUD
        for name, tensor in Weights(weights.config, 1).tensors.items()
        if name.endswith("shared_experts.w2.weight")
    }
    weights.scale(r".*\.shared_experts\.w[13]\.weight", 0.3)
    weights.without_positions()
    weights.without_queries()
    weights.without_sinks()


def queries(weights: Weights) -> None:
    """Heads differ by their queries, which read content only."""
    weights.only_attention()
    weights.without_positions()
    weights.without_sinks()


def content(weights: Weights) -> None:
    """Queries and sinks; nothing rotates."""
    weights.only_attention()
    weights.without_positions()


def eps(weights: Weights, rms: float) -> None:
    """Latents, rows and heads of this size; eps is near its square."""
    content(weights)
    weights.scale(NORMED, rms / FAR_FROM_EPS)
    weights.scale(r".*\.attn\.wq_b\.weight", rms)


PROBES = (
    Probe(
        "attention.window",
        "which positions of the window are seen",
        "6.4",
        UNGROUPED,
        window,
        needs=("experts.shared",),
        **WINDOW,
    ),
    Probe(
        "attention.queries",
        "low-rank queries, their per-head norm, the softmax's scale",
        "6.2",
        UNGROUPED,
        queries,
        needs=("attention.window",),
        **WINDOW,
    ),
    Probe(
        "attention.sink",
        "the sink takes mass and gives no value",
        "6.5",
        UNGROUPED,
        content,
        needs=("attention.queries",),
        **WINDOW,
    ),
    Probe(
        "attention.output",
        "the grouped output projection",
        "6.6",
        config(0),
        content,
        needs=("attention.sink",),
        **WINDOW,
    ),
    Probe(
        "norm.eps",
        "the eps of the norms within attention",
        "5",
        config(0),
        partial(eps, rms=1e-3),
        needs=("attention.output",),
        **WINDOW,
    ),
    Probe(
        "norm.eps_value",
        "an eps of the norms that is not 1e-6",
        "5",
        config(0, rms_norm_eps=0.05),
        partial(eps, rms=0.2),
        needs=("norm.eps",),
        beyond="every published config has rms_norm_eps 1e-6",
        **WINDOW,
    ),
)
