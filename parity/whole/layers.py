"""A port's layers beside the reference's streams: found among what its modules return by their values, as nobody knows
their names. They explain where a wrong port goes wrong first; its logits alone decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..judging.found import closest
from ..judging.runs import DECIDED
from ..judging.tolerance import measure
from ..results import Verdict
from ..streamed.measure import distance
from ..streamed.results import Stage
from ..streamed.stages import measured


@dataclass
class LayerTruth:
    """Streams [1, S, n, D] after a layer: exact, in the run's type, with other rounding; and which tokens [S] are clear
    until there."""

    exact: Tensor
    baseline: Tensor
    nulls: list[Tensor]
    clear: Tensor


def stages_of(
    outputs: list[tuple[str, np.ndarray]],
    truth: list[LayerTruth],
    dtype: str,
    near: Callable[[list[Tensor]], list[Tensor]],
) -> tuple[list[Stage], list[int]]:
    """A stage for each layer that a module gives, and the layers that none does. `near` picks what is held to what
    where too few tokens are clear."""
    stages, lost = [], []
    for index, layer in enumerate(truth):
        module, _ = closest(layer.exact.double(), outputs)
        if module is None:
            lost.append(index)
            continue
        got = torch.from_numpy(next(array for path, array in outputs if path == module)).reshape(layer.exact.shape)
        stage = Stage(f"layer {index}", f"as {module} of the port returns it", Verdict.PARITY)
        stage.accumulated = distance(layer.exact, got)
        stage.accumulated_baseline = distance(layer.exact, layer.baseline)
        if got.isfinite().all():
            parts = [one.flatten(2).to(layer.exact.dtype) for one in (layer.exact, layer.baseline, *layer.nulls, got)]
            parts[1] = parts[1].to(layer.baseline.dtype)
            parts = [one[:, layer.clear] for one in parts] if layer.clear.double().mean() >= DECIDED else near(parts)
            measured(stage, {"streams": measure(parts[0], parts[1], parts[2:-1], parts[-1], dtype)})
        else:
            stage.verdict, stage.sentence = Verdict.DIVERGES, "its streams are not finite"
        stages.append(stage)
    return stages, lost
