"""How a token is chosen from logits, and which drafts stand: so that drafting changes no token, or no probability."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, make_sampler

from .errors import UsageError

Sampler = Callable[[mx.array], mx.array]  # log-probabilities [1, V] -> a token [1]


def rule_of(
    vocabulary: int, temp: float = 0.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0, seed: int | None = None
) -> Greedy | Sampled:
    """What mlx-lm's ``make_sampler`` makes of the same options: at ``temp`` 0 greedy, whatever the others are.

    ``top_p`` 0 or 1, ``top_k`` 0 and ``min_p`` 0 leave out nothing. ``seed`` None goes on from MLX's own random state.
    Raises UsageError.
    """
    if not isinstance(temp, Real) or not 0 <= temp < float("inf"):
        raise UsageError(f"temp is {temp}; give a number at least 0.")
    for name, value in {"top_p": top_p, "min_p": min_p}.items():
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise UsageError(f"{name} is {value}; give a number from 0 to 1.")
    if not isinstance(top_k, Integral) or not 0 <= top_k < vocabulary:
        raise UsageError(f"top_k is {top_k}; give a whole number from 0 to {vocabulary - 1}.")
    if seed is not None and (not isinstance(seed, Integral) or not 0 <= seed < 2**64):
        raise UsageError(f"seed is {seed}; give a whole number from 0 to 2^64 - 1.")
    return Sampled(float(temp), float(top_p), int(top_k), float(min_p), seed) if temp else Greedy()


class Greedy:
    """The best token, of equal ones the first. A draft stands where it is that."""

    def draft(self, logits: mx.array) -> mx.array:
        """A drafter's logits [1, 1, V] -> its draft [1, 1], not computed yet."""
        return _best(logits)

    def verify(self, logits: mx.array, drafts: mx.array) -> list[int]:
        """The model's logits [1, S + 1, V] and the drafts [1, S] -> the drafts that stand, and a token after them."""
        true, drafted = _best(logits)[0].tolist(), drafts[0].tolist()
        taken = next((i for i, draft in enumerate(drafted) if draft != true[i]), len(drafted))
        return true[: taken + 1]

    def sampler(self) -> Sampler:
        """mlx-lm's for plain decoding by the same options."""
        return make_sampler(temp=0.0)


class Sampled:
    """Draws. Drafts are drawn from the drafter's q, which is kept here until ``verify``.

    Draft d stands with probability min(1, p(d) / q(d)), p being the model's; where it falls, max(p - q, 0) gives the
    token. So the tokens are p's, and a draft stands as often as any rule allows: in 1 - sum |p - q| / 2 of the cases.
    The drafter's best token in place of a draw would stand in p(best), which is less wherever q is near p.
    """

    def __init__(self, temp: float, top_p: float, top_k: int, min_p: float, seed: int | None):
        self.temp, self.top_p, self.top_k, self.min_p = temp, top_p, top_k, min_p
        self.key = mx.random.key(mx.random.randint(0, 2**31 - 1).item() if seed is None else seed)
        self._proposals: list[mx.array] = []  # of each draft that was not verified yet, its q [1, V]

    def draft(self, logits: mx.array) -> mx.array:
        """As ``Greedy.draft``."""
        chosen = self._log(logits)
        self._proposals.append(mx.softmax(chosen[0], axis=-1))
        return mx.random.categorical(chosen, key=self._next_key()).astype(mx.int32)

    def verify(self, logits: mx.array, drafts: mx.array) -> list[int]:
        """As ``Greedy.verify``; the drafts are all that came since the last call."""
        p, count = mx.softmax(self._log(logits)[0], axis=-1), drafts.shape[1]
        q = mx.concatenate([*self._proposals, mx.zeros((1, p.shape[1]))])  # where nothing was drafted, p is left
        self._proposals = []
        rest = mx.maximum(p - q, 0)
        rest = mx.where(rest.sum(axis=-1, keepdims=True) > 0, rest, p)  # p is q but for rounding
        own = mx.random.categorical(mx.log(rest), key=self._next_key())
        at = drafts.reshape(count, 1)
        odds = mx.random.uniform(shape=(count, 1), key=self._next_key()) * mx.take_along_axis(q[:count], at, axis=1)
        stands = (odds < mx.take_along_axis(p[:count], at, axis=1))[:, 0].tolist()
        taken = stands.index(False) if False in stands else count
        return [*drafts[0, :taken].tolist(), own[taken].item()]

    def sampler(self) -> Sampler:
        """As ``Greedy.sampler``."""
        return make_sampler(self.temp, self.top_p, self.min_p, top_k=self.top_k)

    def _log(self, logits: mx.array) -> mx.array:
        """[1, S, V] -> what ``softmax`` makes the probabilities of: mlx-lm's own steps, in its order."""
        found = logits.astype(mx.float32)
        found = found - mx.logsumexp(found, axis=-1, keepdims=True)
        if 0 < self.top_p < 1:
            found = apply_top_p(found, self.top_p)
        if self.min_p:
            found = apply_min_p(found, self.min_p)
        if self.top_k:
            found = apply_top_k(found, self.top_k)
        return found / self.temp

    def _next_key(self) -> mx.array:
        self.key, key = mx.random.split(self.key)
        return key


def _best(logits: mx.array) -> mx.array:
    """[1, S, V] -> [1, S]; of equal logits the first."""
    return logits.argmax(axis=-1).astype(mx.int32)
