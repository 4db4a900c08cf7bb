"""What each value of a watched run is: the reference's, the defective reference's alone, neither, or of no use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..candidates.told import Watched
from .values import Known, Values, trivial

FEW = 256  # of a mask so small many have as many ones
HIDDEN = -1e8  # what is added to a score to hide its key is below


@dataclass(frozen=True)
class Meant:
    """state: "right", "wrong" (the defective reference's alone), "other", "plain" (all equal, as nothing of that size
    in the reference is, a mask of one kind, or not finite) or "weak" (a small mask, as which many count). key: of the
    reference's value that it is. still: whether no token changes that. mask: whether it is one of zeros and ones, of
    which only their number is compared. laid: whether its numbers lie as the reference's did when it made them."""

    state: str
    key: str = ""
    still: bool = False
    mask: bool = False
    laid: bool = False


def meanings(watched: Watched, right: Values, wrong: Values | None) -> list[Meant]:
    """What each value of a run is."""
    found = []
    for place, one in enumerate(watched.values):
        value = ordered(one)
        if value is None:
            known = len(one) and (one[0] == 0 or (len(one), float(one[0])) in right.plain) and np.isfinite(one).all()
            found.append(Meant("right" if known and place not in watched.masks else "plain", still=True))
        else:
            found.append(_meaning(one, value, right, wrong))
    return found


def _meaning(given: np.ndarray, value: np.ndarray, right: Values, wrong: Values | None) -> Meant:
    mask = bool(value[0] == 0 and value[-1] == 1 and discrete(value))
    if mask and len(value) < FEW:
        return Meant("weak", still=True, mask=True)
    for state, values in (("right", right), ("wrong", wrong)):
        found: Known | None = values.find(value) if values is not None else None
        if found is not None:
            laid = found.laid is not None and bool(np.abs(given - found.laid).max() <= found.limit)
            return Meant(state, found.key, found.still, mask, laid)
    return Meant("other", still=discrete(value), mask=mask)


def ordered(value: np.ndarray) -> np.ndarray | None:
    """Sorted, float64, a mask that is added as one of zeros and ones; None for what proves nothing."""
    value = np.sort(np.asarray(value, dtype=np.float64))
    if len(value) and value[0] < HIDDEN and value[-1] <= 0:
        value = np.sort((value > HIDDEN).astype(np.float64))
    return value if len(value) and np.isfinite(value).all() and not trivial(value) else None


def discrete(value: np.ndarray) -> bool:
    """Whether sorted numbers are whole ones, as masks and positions are."""
    return bool((value == np.floor(value)).all())
