"""A model whose caches are lived through, and what was found: lives, tokens held to the reference, the broken life."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx
from mlx_lm.models import cache as mlx_lm_cache

from .limits import Limits, beyond

KEPT = 1000  # reference logits that are not computed again


@dataclass
class Port:
    """A model under test, as mlx-lm calls it unless told otherwise.

    call: (ids [B, S], cache) -> logits. alone: ids [1, S] -> the model's own logits of one call, by default without a
    cache. reference: what those are held to, by default the same. renewed: the same port with nothing of its past, by
    default as it is. limits: how far rounding alone may take it.
    """

    model: object
    vocabulary: int
    limits: Limits
    make_cache: Callable[[], list] | None = None
    reference: Callable[[mx.array], mx.array] | None = None
    call: Callable[[mx.array, list], mx.array] | None = None
    alone: Callable[[mx.array], mx.array] | None = None
    renewed: Callable[[], Port] | None = None

    def __post_init__(self):
        self.make_cache = self.make_cache or (lambda: mlx_lm_cache.make_prompt_cache(self.model))
        self.call = self.call or (lambda ids, cache: self.model(ids, cache=cache))
        self.alone = self.alone or self.model
        self.reference = self.reference or self.alone
        self.renewed = self.renewed or (lambda: self)


@dataclass
class Broken:
    """A life after which the port deviates: its operations, and in words what happened.

    raised: whether the port raised, where it should have gone on. suspect: where logits differ, the tokens up to the
    first that does, and its error over the limits that were handed in. script: the life as lines of mlx-lm calls.
    """

    operations: list[tuple[str, dict]]
    sentence: str
    raised: bool = False
    suspect: tuple[list[int], float] | None = None
    script: list[str] = field(default_factory=list)


@dataclass
class Lives:
    """What was lived through: how many lives, tokens held to the reference, the largest error over its limit, long
    generations in which what piles up was looked at.

    without: operations that the port does not offer. lacking: those of which that showed only in a life, and why.
    suspect: as in `Broken`, of the logits judged wrong last.
    """

    port: Port
    without: frozenset[str] = frozenset()
    lives: int = 0
    tokens: int = 0
    ratio: float = 0.0
    generations: int = 0
    broken: Broken | None = None
    suspect: tuple[list[int], float] | None = None
    known: dict[tuple, mx.array] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)

    def expected(self, ids: list[int], new: int) -> mx.array:
        """Logits [new, V] of the last tokens in one call over all; of a port that gives a call's last logits alone, in
        as many calls over the beginnings."""
        whole = self._called(ids)
        if len(whole) >= new:
            return whole[-new:]
        return mx.concatenate([self._called(ids[:end])[-1:] for end in range(len(ids) - new + 1, len(ids) + 1)])

    def _called(self, ids: list[int]) -> mx.array:
        """What one call over tokens gives, [S, V] or [1, V]."""
        key = tuple(ids)
        if key not in self.known:
            if len(self.known) >= KEPT:
                self.known.clear()
            self.known[key] = self.port.reference(mx.array([ids]))[0]
        return self.known[key]

    @property
    def suspect_token(self) -> int:
        """The place of the token whose logits were judged wrong last."""
        return len(self.suspect[0]) - 1

    def judge(self, row: list[int], got: mx.array) -> str:
        """How the last logits [new, V] of a sequence differ by more than rounding explains; empty if they do not."""
        new, expected = len(got), self.expected(row, len(got))
        over = self.port.limits.ratios(row, got, expected)
        wrong = [token for token, ratio in enumerate(over) if beyond(ratio)]
        if self.broken is None:
            clear = [ratio for ratio in over if ratio is not None]
            self.tokens += len(clear)
            self.ratio = max([self.ratio, *clear]) if not wrong else math.inf
        if not wrong:
            return ""
        token = len(row) - new + wrong[0]
        distance = mx.abs(got[wrong[0]] - expected[wrong[0]]).max().item()
        self.suspect = row[: token + 1], over[wrong[0]]
        return (
            f"token {token} of {len(row)}: logits are off by {distance:.2g}, {over[wrong[0]]:.3g} times what rounding "
            "explains"
        )

    def fail(self, broken: Broken):
        """Keep the first."""
        self.broken = self.broken or broken
