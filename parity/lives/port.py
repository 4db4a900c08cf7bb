"""A model whose caches are lived through, and what was found: lives, tokens held to the reference, the broken life."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models import cache as mlx_lm_cache

KEPT = 1000  # reference logits that are not computed again

# A difference that rounding cannot make at this size is looked at twice: relative to the logits' spread, a type.
NEAR = {mx.float32: 1e-4, mx.bfloat16: 2e-2, mx.float16: 4e-3}
# Weights moved by one rounding move the logits as another order of summation does; runs of them tell how far, and
# where a choice of experts or rows hangs by a rounding, they show it.
ROUNDING = {mx.float32: 2.0**-23, mx.bfloat16: 2.0**-8, mx.float16: 2.0**-11}
NOISE_RUNS, NOISE_FACTOR = 4, 20


@dataclass
class Port:
    """A model under test, as mlx-lm calls it unless told otherwise.

    call: (ids [B, S], cache) -> logits. alone: ids [1, S] -> the model's own logits of one call, by default without a
    cache. reference: what those are held to, by default the same. renewed: the same port with nothing of its past, by
    default as it is.
    """

    model: object
    vocabulary: int
    make_cache: Callable[[], list] | None = None
    reference: Callable[[mx.array], mx.array] | None = None
    dtype: mx.Dtype = mx.float32
    call: Callable[[mx.array, list], mx.array] | None = None
    alone: Callable[[mx.array], mx.array] | None = None
    renewed: Callable[[], Port] | None = None

    def __post_init__(self):
        self.make_cache = self.make_cache or (lambda: mlx_lm_cache.make_prompt_cache(self.model))
        self.call = self.call or (lambda ids, cache: self.model(ids, cache=cache))
        self.alone = self.alone or self.model
        self.reference = self.reference or self.alone
        self.renewed = self.renewed or (lambda: self)

    def noise(self, ids: list[int]) -> mx.array:
        """How far rounding alone moves the logits of each token: [S, 1]."""
        weights = self.model.parameters()
        expected, found = self.alone(mx.array([ids]))[0], []
        try:
            for run in range(NOISE_RUNS):
                self.model.update(tree_map(functools.partial(self._moved, mx.random.key(run)), weights))
                found.append(mx.abs(self.alone(mx.array([ids]))[0] - expected).max(axis=-1, keepdims=True))
                mx.eval(found)
        finally:
            self.model.update(weights)
        return mx.stack(found).max(axis=0)

    def _moved(self, key: mx.array, weight: mx.array) -> mx.array:
        if not mx.issubdtype(weight.dtype, mx.floating):
            return weight
        signs = mx.where(mx.random.bernoulli(shape=weight.shape, key=key), 1.0, -1.0)
        return (weight * (1 + ROUNDING[self.dtype] * signs)).astype(weight.dtype)


@dataclass
class Broken:
    """A life after which the port deviates: its operations, and in words what happened.

    raised: whether the port raised, where it should have gone on.
    """

    operations: list[tuple[str, dict]]
    sentence: str
    raised: bool = False


@dataclass
class Lives:
    """What was lived through: how many lives, tokens held to the reference, the largest error over its limit.

    without: operations that the port does not offer. lacking: those of which that showed only in a life, and why.
    """

    port: Port
    without: frozenset[str] = frozenset()
    lives: int = 0
    tokens: int = 0
    ratio: float = 0.0
    broken: Broken | None = None
    known: dict[tuple, mx.array] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)

    def expected(self, ids: list[int]) -> mx.array:
        """Logits [S, V] of one call over all tokens."""
        key = tuple(ids)
        if key not in self.known:
            if len(self.known) >= KEPT:
                self.known.clear()
            self.known[key] = self.port.reference(mx.array([ids]))[0]
        return self.known[key]

    def judge(self, row: list[int], got: mx.array) -> str:
        """How the last logits [new, V] of a sequence differ by more than rounding explains; empty if they do not."""
        new, expected = len(got), self.expected(row)
        near = NEAR[self.port.dtype] * mx.sqrt(mx.var(expected.astype(mx.float32))).item()
        distance = mx.abs(got - expected[-new:]).max(axis=-1)
        limit = mx.full(new, near)
        if not distance.max().item() <= near:
            limit = NOISE_FACTOR * self.port.noise(row)[-new:, 0] + near
        over = (distance / limit).tolist()
        wrong = [token for token, ratio in enumerate(over) if not ratio <= 1]
        if self.broken is None:
            self.tokens += new
            self.ratio = max(self.ratio, *over) if not wrong else math.inf
        if not wrong:
            return ""
        return (
            f"token {len(row) - new + wrong[0]} of {len(row)}: logits are off by {distance[wrong[0]].item():.2g}; "
            f"rounding explains {limit[wrong[0]].item():.2g}"
        )

    def fail(self, broken: Broken):
        """Keep the first."""
        self.broken = self.broken or broken
