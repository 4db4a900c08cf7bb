"""What every other probe stands on."""

from . import Probe
from .weights import Weights, config


def nothing_between(weights: Weights) -> None:
    """Streams that no sub-layer changes."""
    weights.mute_attention()
    weights.mute_experts()
    weights.still_hyper_connections()
    weights.scale("embed.weight", 16.0)


PROBES = (
    Probe(
        "embedding",
        "embedding, final norm and output head",
        "3",
        config(0),
        nothing_between,
        tokens=12,
        prompt=9,
        chunks=(5, 1, 6),
    ),
)
