"""What each value of a watched run is: the reference's, the defective reference's alone, neither, or of no use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..candidates.arrays import SMALLEST
from ..candidates.told import Watched
from .values import HIDDEN, Known, Values, seen_of, trivial

FEW = 256  # of a mask so small many have as many ones
LONGEST = 4096  # numbers of a table that is known when turned


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
        if value is None and (known := _as_table(one, right, wrong) or _seen(np.sort(one, axis=None), right, wrong)):
            found.append(known)
        elif value is None:
            flat = one.ravel()
            same = len(flat) and np.isfinite(flat).all()
            known = same and (flat[0] == 0 or (len(flat), float(flat[0])) in right.plain)
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
            laid = found.laid is not None and bool(np.abs(given.ravel() - found.laid).max() <= found.limit)
            return Meant(state, found.key, found.still, mask, laid)
    return (
        _as_table(given, right, wrong) or _seen(value, right, wrong) or Meant("other", still=discrete(value), mask=mask)
    )


def _seen(value: np.ndarray, right: Values, wrong: Values | None) -> Meant | None:
    """What a sorted value is if it is one of the reference's but for zeros and for what is hidden."""
    inner = seen_of(value.astype(np.float64))
    inner = inner[inner != 0]
    if not SMALLEST <= inner.size < value.size or trivial(inner) or not np.isfinite(inner).all():
        return None
    for state, values in (("right", right), ("wrong", wrong)):
        known = values.bare.find(inner) if values is not None else None
        if known is not None:
            return Meant(state, known.key, known.still)
    return None


def _as_table(given: np.ndarray, right: Values, wrong: Values | None) -> Meant | None:
    """What a value is if it is a table that no token changes, turned: wavelengths for frequencies, or the other way
    round, with infinite ones for channels that are not rotated."""
    value = given[np.isfinite(given)].astype(np.float64)
    if not SMALLEST <= value.size <= LONGEST or (value == value[0]).all() or (value == 0).any():
        return None
    turned = [np.sort(one) for one in (value, -value, 1 / value, -1 / value)]
    for state, values in (("right", right), ("wrong", wrong)):
        for one in turned:
            known = values.find(one) if values is not None else None
            if known is not None and known.still:
                return Meant(state, known.key, True)
    return None


def ordered(value: np.ndarray) -> np.ndarray | None:
    """Sorted, float64, a mask that is added as one of zeros and ones; None for what proves nothing."""
    value = np.sort(np.asarray(value, dtype=np.float64), axis=None)
    if len(value) and value[0] < HIDDEN and value[-1] <= 0:
        value = np.sort((value > HIDDEN).astype(np.float64))
    return value if len(value) and np.isfinite(value).all() and not trivial(value) else None


def discrete(value: np.ndarray) -> bool:
    """Whether sorted numbers are whole ones, as masks and positions are."""
    return bool((value == np.floor(value)).all())
