"""How far rounding may move the logits of a model with a past: the limit of lives of caches, from the reference.

A life's tokens are drawn while it goes on, so the limit is computed ahead on random tokens of the same checkpoint, and
again on the very tokens of whatever is beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

from .runs import Runs
from .tolerance import measure, rms

SAMPLE = (2, 128)  # sequences and tokens that the limit is computed on ahead


@dataclass(frozen=True)
class Examined:
    """The same tokens in the reference: exact logits [S, V], the limit there, clear tokens [S] (`runs.Runs`)."""

    exact: Tensor
    limit: float
    clear: Tensor


class Lived:
    """The limits of one checkpoint: of the largest error of a token's logits against exact.

    itself: the candidate is held to its own one-shot logits instead, so that both are rounded: the null is then how
    far two runs of the reference are from each other.
    """

    def __init__(
        self, config: dict, tensors: dict[str, Tensor], dtype: str, simulation: str = "none", itself: bool = False
    ):
        self.config, self.tensors, self.dtype, self.simulation = config, tensors, dtype, simulation
        self.itself = itself

    @cached_property
    def _ahead(self) -> tuple[float, float]:
        random = torch.Generator().manual_seed(0)
        runs = self._runs(torch.randint(0, self.config["vocab_size"], SAMPLE, generator=random))
        exact, *rounded = runs.logits(seed=0)
        return self._limit(exact, rounded), rms(exact)

    @property
    def limit(self) -> float:
        """For any tokens, in logits."""
        return self._ahead[0]

    @property
    def scale(self) -> float:
        """RMS of the exact logits there: a model whose logits are larger rounds more."""
        return self._ahead[1]

    def examine(self, ids: list[int]) -> Examined:
        """Of these tokens; the limit is never below that of any tokens, since a few make a small sample."""
        runs = self._runs(torch.tensor([ids]))
        exact, *rounded = runs.logits(seed=0)
        return Examined(exact[0], max(self.limit, self._limit(exact, rounded)), runs.clear[0])

    def _runs(self, ids: Tensor) -> Runs:
        return Runs(self.config, self.tensors, ids, self.dtype, self.simulation)

    def _limit(self, exact: Tensor, rounded: list[Tensor]) -> float:
        baseline, *nulls = rounded
        if self.itself:
            nulls += [exact + one.double() - other.double() for one, other in combinations(rounded, 2)]
        return measure(exact, baseline, nulls, baseline, self.dtype).limit_max
