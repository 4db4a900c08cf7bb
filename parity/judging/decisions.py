"""Discrete choices inside the model, and when another choice is legal (method, section 3).

A choice of k out of N by score is legal where every item in which it differs from the exact choice has an exact score
within the noise margin of the cut; it is then a *tie*, counted and replayed. Anything else is a deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """What became of one decision tap: tokens that chose like exact, legal ties, and the worst illegal one."""

    tokens: int
    ties: int
    illegal: int
    worst_excess: float  # how far beyond the margin the worst illegal choice lies, in margins
    note: str = ""


def as_sets(picks: Tensor, count: int) -> Tensor:
    """picks [B, S, k] of ids with -1 for none -> bool [B, S, count]. Raises ValueError for an id out of range."""
    if picks.numel() and (int(picks.max()) >= count or int(picks.min()) < -1):
        raise ValueError(f"chose item {int(picks.max())} of {count}")
    chosen = torch.zeros(*picks.shape[:2], count + 1, dtype=torch.bool)
    return chosen.scatter_(2, picks.long().masked_fill(picks < 0, count), True)[..., :count]


def judge(scores: Tensor, allowed: Tensor, picks: Tensor, k: int, margin: Tensor | float) -> Choice:
    """Is every row of `picks` a top-k of the exact `scores` up to `margin`?

    scores [B, S, N] exact, allowed bool like it (rows not yet visible are not), picks [B, S, <=k], margin per token
    [B, S] or one number: how far a score may be off on either side of the cut.
    """
    tokens = picks.shape[0] * picks.shape[1]
    try:
        chosen = as_sets(picks, scores.shape[-1])
    except ValueError as error:
        return Choice(tokens, 0, tokens, float("inf"), str(error))
    wanted = allowed.sum(-1).clamp_max(k)
    wrong = (chosen & ~allowed).any(-1) | (chosen.sum(-1) != wanted)
    if chosen.shape[-1] == 0:
        return Choice(tokens, 0, int(wrong.sum()), float("inf") if wrong.any() else 0.0)
    lowest_in = scores.masked_fill(~chosen, torch.inf).amin(-1)
    highest_out = scores.masked_fill(chosen | ~allowed, -torch.inf).amax(-1)
    behind = (highest_out - lowest_in).nan_to_num(nan=torch.inf)  # above 0: not the exact top-k
    differs = behind > 0
    margin = torch.as_tensor(margin, dtype=scores.dtype).expand_as(behind)
    too_far = wrong | (differs & (behind > 2 * margin))
    excess = torch.where(wrong, torch.inf, behind / (2 * margin).clamp_min(1e-300))
    return Choice(
        tokens=tokens,
        ties=int((differs & ~too_far).sum()),
        illegal=int(too_far.sum()),
        worst_excess=float(excess[too_far].max()) if too_far.any() else 0.0,
        note="chose a forbidden or a wrong number of items" if wrong.any() else "",
    )


def same(expected: Tensor, picks: Tensor, count: int) -> Choice:
    """Choices that leave no freedom, such as experts by token id: the sets must be equal. Both [B, S, k]."""
    tokens = expected.shape[0] * expected.shape[1]
    try:
        wrong = int((as_sets(expected, count) != as_sets(picks, count)).any(-1).sum())
    except (ValueError, RuntimeError) as error:
        return Choice(tokens, 0, tokens, float("inf"), str(error))
    return Choice(tokens, 0, wrong, float("inf") if wrong else 0.0, "the table names other experts" if wrong else "")
