"""Rotation in layers without compressed rows, and in compressed layers before the first row exists."""

from . import Probe
from .weights import Weights, config

WINDOW = {"tokens": 29, "prompt": 5, "chunks": (7, 1, 9, 3, 9)}


def scores(weights: Weights) -> None:
    """Rotated channels enter the scores, and not the output."""
    weights.only_attention()
    weights.outputs_without_positions()


PROBES = (
    Probe(
        "rope.scores",
        "rotation of queries and keys",
        "5",
        config(0),
        scores,
        needs=("attention.output",),
        **WINDOW,
    ),
    Probe(
        "rope.inverse",
        "the inverse rotation of the output",
        "6.6",
        config(0),
        Weights.only_attention,
        needs=("rope.scores",),
        **WINDOW,
    ),
    Probe(
        "rope.compressed_layer",
        "base and YaRN of layers that compress, before their first row",
        "5",
        config(128, sliding_window=64),
        Weights.only_attention,
        tokens=100,
        prompt=88,
        chunks=(31, 1, 2, 40, 26),
        needs=("rope.inverse",),
    ),
)
