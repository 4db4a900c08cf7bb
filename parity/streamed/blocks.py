"""One block on both sides, alone on the reference's streams and on each side's own path, in as few passes as can be.

The candidate runs both as one batch of two sequences: a prompt in one call, then token by token on the warm cache. The
exact reference runs the same batch, replaying the candidate's choices; the reference in the run's type runs its own path,
whose streams are the next block's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import oracle, taps
from ..oracle import Observation
from ..strategies.weights import DTYPES

POINTS = {"attn": ("attn", ""), "ffn": ("ffn", "")}


@dataclass
class Side:
    """What `oracle.observe` asks of a side, for a single block."""

    model: object
    tensor: Callable
    integers: Callable


def paths_of(config: dict, layer: int) -> dict[str, str]:
    """The deciding modules of one block by their paths in it."""
    found = oracle.decision_paths(config)
    depth = layer - config["num_hidden_layers"]
    prefix = f"layers.{layer}." if depth < 0 else f"mtp.{depth}."
    return {path.removeprefix(prefix): kind for path, kind in found.items() if path.startswith(prefix)}


def observed(side: Side, run: Callable[[], Tensor], paths: dict[str, str], replay=None) -> Observation:
    """Outputs of attention, experts and the whole block, and every choice."""

    def recorded() -> dict[str, Tensor]:
        with taps.recording(side.model, POINTS) as record:
            streams = run()
        found = {name: torch.cat([side.tensor(part) for part in parts], dim=1) for name, parts in record.items()}
        return found | {"streams": streams}

    return oracle.observe(side, recorded, paths, replay)


def row(observation: Observation, index: int) -> Observation:
    """One sequence of a batch."""
    cut = lambda tensors: {name: tensor[index : index + 1] for name, tensor in tensors.items()}  # noqa: E731
    return Observation(cut(observation.taps), cut(observation.scores), cut(observation.picks), cut(observation.free))


def wide(dtype: str) -> torch.dtype:
    """The type of an exact run: float64 beside float32; beside bfloat16, whose roundings are 2^15 times larger than
    float32's, float32 is exact enough and costs half."""
    return torch.float64 if DTYPES[dtype] == torch.float32 else torch.float32
