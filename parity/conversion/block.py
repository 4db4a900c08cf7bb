"""A block of the original beside the same block with honestly rounded weights; tensors are read and compared once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dsv4_checkpoints import Reading, Stored, read
from dsv4_checkpoints.tree import slots
from reference_torch.block import Block
from reference_torch.experts import Expert

from ..streamed.reference import StreamedBlock, prefix_of
from .weights import Taken, Weights

ORIGINAL = -1  # else the number of an honest rounding
COPIES = (ORIGINAL, 0, 1)
LEAVES = ("w1", "w2", "w3")


def plain_reading(config) -> Reading:
    """How tensors under published names are read that are decoded already."""
    stored = {name: Stored("I64" if one.published == "I64" else "F32", one.shape) for name, one in slots(config)}
    return read(config, stored)


class Plain(Mapping):
    """One copy's values of the tensors that were taken, as a source that the reference is filled from."""

    def __init__(self, weights: Weights, reading: Reading, taken: dict[str, Taken], copy: int):
        self.config, self.reading, self.taken, self.copy = weights.original.config, reading, taken, copy

    def __getitem__(self, name: str) -> Tensor:
        return of_copy(self.taken[name], self.copy)

    def __iter__(self):
        return iter(self.taken)

    def __len__(self) -> int:
        return len(self.taken)

    def names(self, prefix: str) -> list[str]:
        """Published names of the parameters of a part."""
        return [name for name in self.reading.places if name.startswith(prefix)]


def of_copy(taken: Taken, copy: int) -> Tensor:
    """The original's values, or those of an honest rounding."""
    return taken.original if copy == ORIGINAL else taken.rounded[copy]


class ComparedBlock:
    """One block of the original in its copies; experts are taken when they are asked for, the others at the end."""

    def __init__(self, weights: Weights, reading: Reading, index: int):
        self.weights, self.taken = weights, {}
        self.prefix = prefix_of(weights.original.config, index)
        self.names = [name for name in reading.places if name.startswith(self.prefix)]
        self.streamed = {copy: StreamedBlock(Plain(weights, reading, self.taken, copy), index) for copy in COPIES}
        for name in self.names:
            if ".ffn.experts." not in name:
                self.taken[name] = weights.take(name)

    def copy(self, copy: int, dtype: torch.dtype) -> Block:
        """A block with parameters in `dtype`."""
        return self.streamed[copy].copy(dtype)

    def expert(self, index: int) -> Callable[[tuple[int, torch.dtype]], Expert]:
        """A routed expert in whatever copies and types it is asked for."""
        names = [f"{self.prefix}ffn.experts.{index}.{leaf}.weight" for leaf in LEAVES]
        self.taken |= {name: self.weights.take(name) for name in names}
        made: dict[int, Callable[[torch.dtype], Expert]] = {}

        def given(wanted: tuple[int, torch.dtype]) -> Expert:
            copy, dtype = wanted
            if copy not in made:
                made[copy] = self.streamed[copy].expert(index)
            return made[copy](dtype)

        for other in [name for name in self.taken if ".ffn.experts." in name and name not in names]:
            del self.taken[other]
        return given

    def compare_rest(self) -> None:
        """Take what no token chose."""
        for name in self.names:
            if name not in self.weights.found:
                self.weights.take(name)
