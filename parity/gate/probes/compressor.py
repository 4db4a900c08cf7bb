"""Compressed rows at ratio 128 and, with overlapping windows, at ratio 4."""

from . import Probe
from .weights import FAR_FROM_EPS, Weights, config

PLAIN = {"tokens": 270, "prompt": 250, "chunks": (100, 27, 1, 134, 8)}  # the fourth call holds a whole block
SMALL = 3e-3  # before the mean of eight
OVERLAP = {"tokens": 43, "prompt": 13, "chunks": (5, 1, 8, 2, 3, 13, 11)}


def means(weights: Weights) -> None:
    """Rows are plain means of their tokens, and weigh the same as the window's."""
    weights.only_attention()
    weights.without_positions()
    weights.without_queries()
    weights.without_gates()


def gates(weights: Weights) -> None:
    """Gates by content, without ape."""
    weights.only_attention()
    weights.without_positions()
    weights.without_queries()
    weights.zero(r".*\.compressor\.ape")


def ape(weights: Weights) -> None:
    """Gates by content and by position in the block."""
    weights.only_attention()
    weights.without_positions()
    weights.without_queries()


def eps(weights: Weights) -> None:
    """Pooled rows of about 1e-3, whose square is the eps of their norm."""
    means(weights)
    weights.scale(r".*\.attn\.compressor\.wkv\.weight", SMALL / FAR_FROM_EPS)


def probes(kind: str, ratio: int, schedule: dict, first: tuple[str, ...]) -> tuple[Probe, ...]:
    """The same four questions at either ratio."""
    name, shape = f"compressor.{kind}", config(ratio, num_attention_heads=2)
    rows = f"rope.{kind}_rows"
    return (
        Probe(
            name,
            f"rows at ratio {ratio}: which tokens, and who sees them",
            "7",
            shape,
            means,
            needs=first,
            **schedule,
        ),
        Probe(
            f"{name}.gate",
            f"the gates of the pooling at ratio {ratio}",
            "7",
            shape,
            gates,
            needs=(name,),
            **schedule,
        ),
        Probe(
            f"{name}.ape",
            f"the position within the block at ratio {ratio}",
            "7",
            shape,
            ape,
            needs=(f"{name}.gate",),
            **schedule,
        ),
        Probe(
            rows,
            f"rotation of the rows at ratio {ratio}",
            "7",
            shape,
            Weights.only_attention,
            needs=(f"{name}.ape", "rope.compressed_layer"),
            **schedule,
        ),
    )


PROBES = (
    *probes("plain", 128, PLAIN, ("attention.output",)),
    *probes("overlap", 4, OVERLAP, ("attention.output",)),
    Probe(
        "compressor.eps",
        "the eps of the norm of compressed rows",
        "7",
        config(4, num_attention_heads=2),
        eps,
        needs=("compressor.overlap", "norm.eps"),
        **OVERLAP,
    ),
)
