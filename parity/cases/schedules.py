"""How tokens reach a model: in one call or several, with what is kept between them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .strategies import Case


def calls(side, case: Case, step: Callable[[int, int], object]) -> Tensor:
    """step(start, stop) for each call of the case, the outputs [B, S_i, ...] joined along the tokens."""
    return torch.cat([side.tensor(step(start, stop)) for start, stop in case.spans()], dim=1)


def last(side, case: Case, step: Callable[[int, int], object]) -> Tensor:
    """step(start, stop) for each call of the case; the last output, for what grows from call to call."""
    for start, stop in case.spans():
        output = step(start, stop)
    return side.tensor(output)


def describe(case: Case) -> str:
    """A schedule in words: `7 tokens in one call`, `prefill 5, then 2 one by one`, `chunks 3+4`."""
    chunks = case.chunks
    batch = f"{case.batch} x " if case.batch > 1 else ""
    if len(chunks) == 1:
        return f"{batch}{case.tokens} tokens in one call{' with a cache' if case.cached else ''}"
    if set(chunks) == {1}:
        return f"{batch}{case.tokens} tokens one by one"
    if set(chunks[1:]) == {1}:
        return f"{batch}prefill {chunks[0]}, then {len(chunks) - 1} one by one"
    return f"{batch}chunks {'+'.join(map(str, chunks))}"
