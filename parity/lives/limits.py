"""How far a port's logits may be from what they are held to: computed by the harness, which has the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class Limits:
    """The largest error that rounding makes in a token's logits, from the reference's null (`judging.lived`).

    scale: RMS of the logits that it was computed from, where the port is held to its own, which may be larger; 0 where
    it is held to exact ones. unclear: beginnings of sequences, from whose last token on nothing is judged, as an expert
    or a row hangs there by a rounding. examine: (ids, logits [new, V] of the last of them) -> errors [new] over their
    limits on these very tokens, None for an unclear one; absent where the reference is not at hand: what is found here
    then awaits the harness.
    """

    largest: float
    scale: float = 0.0
    unclear: tuple[tuple[int, ...], ...] = ()
    examine: Callable[[list[int], mx.array], list[float | None]] | None = None

    def ratios(self, ids: list[int], got: mx.array, expected: mx.array) -> list[float | None]:
        """Error over limit of each of the last tokens of ids; got, expected: [new, V]. Above 1 or not a number is no
        rounding; None is a token that cannot be judged."""
        if not self.largest > 0:
            raise ValueError("a limit must be above 0.")
        errors = mx.abs(got - expected).max(axis=-1) / self.largest
        if self.scale:
            size = mx.sqrt(mx.square(expected.astype(mx.float32)).mean(axis=-1))
            errors = errors / mx.maximum(size / self.scale, 1)
        clear = self._clear(ids) - (len(ids) - len(got))
        over = [ratio if token < clear else None for token, ratio in enumerate(errors.tolist())]
        if self.examine is not None and any(map(beyond, over)):
            return self.examine(ids, got)
        return over

    def _clear(self, ids: list[int]) -> int:
        """How many tokens come before the first unclear one."""
        return min([len(ids)] + [len(one) - 1 for one in self.unclear if tuple(ids[: len(one)]) == one])


def beyond(ratio: float | None) -> bool:
    """Whether an error over its limit is no rounding; what is not a number is none."""
    return ratio is not None and not ratio <= 1
