"""A tensor found among what a candidate's modules return, by its values."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# An output this far from a tensor, relative to its size, is another tensor.
UNLIKE = 0.5


def closest(truth: Tensor, given: list[tuple[str, np.ndarray]]) -> tuple[str | None, float]:
    """The output with as many elements that lies nearest, and its RMS error relative to the tensor's size."""
    flat = truth.flatten()
    size = float(flat.square().mean().sqrt()) or 1.0
    best = (None, float("inf"))
    for path, array in given:
        if array.size == flat.numel():
            error = float((torch.from_numpy(array).double().flatten() - flat).square().mean().sqrt()) / size
            if error < best[1]:
                best = (path, error)
    return best if best[1] < UNLIKE else (None, best[1])
