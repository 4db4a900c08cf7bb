"""Masks, compared as they lie: which key each token sees. Their numbers alone say next to nothing, and a mask is all
that is wrong in what ports get wrong most often."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ..candidates.told import Watched
from ..candidates.watching import Event
from .matching import Meant
from .operations import Operation
from .seen import Seen
from .values import HIDDEN

FEWEST = 32  # tokens x keys: of less many are alike


class Masks:
    """Those of a run of the reference, by the number of tokens."""

    def __init__(self, operations: Iterable[Operation], but: Iterable[Operation] = ()):
        self.known: dict[int, list[np.ndarray]] = {}
        met = {(one.key, one.shape) for one in but}
        for one in operations:
            if one.boolean and (one.key, one.shape) not in met:
                met.add((one.key, one.shape))
                if (visible := flat(one.laid.reshape(one.shape) > 0)) is not None:
                    self.known.setdefault(len(visible), []).append(visible)

    def have(self, visible: np.ndarray) -> bool:
        """Whether one is among them."""
        return any(one.shape == visible.shape and (one == visible).all() for one in self.known.get(len(visible), ()))

    def have_part(self, visible: np.ndarray) -> bool:
        """Whether one is the first or the last keys of one of them: ports keep the window's and compressed rows
        apart."""
        keys = visible.shape[1]
        wider = (one for one in self.known.get(len(visible), ()) if one.shape[1] >= keys)
        return any((one[:, :keys] == visible).all() or (one[:, -keys:] == visible).all() for one in wider)


def flat(mask: np.ndarray) -> np.ndarray | None:
    """Any [.., S, K] as [tokens, K], without first axes along which nothing changes; None for what is too small."""
    while mask.ndim > 2 and (mask == mask[:1]).all():
        mask = mask[0]
    return mask.reshape(-1, mask.shape[-1]) if mask.ndim > 1 and mask.size >= FEWEST else None


def read_as(value: np.ndarray, boolean: bool) -> np.ndarray | None:
    """A port's value as what is visible, if it is a mask: of truth values, or one that is added."""
    if boolean:
        return flat(value > 0)
    hides = value < HIDDEN
    return flat(~hides) if hides.any() and (value[~hides] == 0).all() else None


class Shown:
    """The masks of a watched run, and what each is: "right", "wrong" (of the defective reference alone) or "other"."""

    def __init__(self, watched: Watched, right: Iterable[Operation], wrong: Iterable[Operation]):
        self.right, self.wrong = Masks(right), Masks(wrong, right)
        found = ((place, read_as(one, place in watched.masks)) for place, one in enumerate(watched.values))
        self.masks = {place: mask for place, mask in found if mask is not None}
        self.states = {place: self._state(mask) for place, mask in self.masks.items()}

    def _state(self, mask: np.ndarray) -> str:
        if mask.all():
            return "right" if self.right.have(mask) else "wrong" if self.wrong.have_part(mask) else "other"
        if not mask.any():  # as one is begun with
            return "right" if self.right.have(mask) else "other"
        forms = mask, ~mask  # True hides in some ports
        if any(map(self.right.have_part, forms)):
            return "right"
        return "wrong" if any(map(self.wrong.have_part, forms)) else "other"

    def state(self, place: int) -> str:
        """Of a place that is no mask: "none"."""
        return self.states.get(place, "none")

    def corrected(self, meant: list[Meant]) -> list[Meant]:
        """What each value of the run is, but for masks that have as many ones as one of the reference's and are not
        that one."""
        weak, other = (Meant(state, still=True, mask=True) for state in ("weak", "other"))
        kept = lambda place, one: one.state == self.state(place) or self.state(place) == "none"  # noqa: E731
        less = lambda place, one: weak if self.state(place) == "right" else other  # noqa: E731
        counted = ("right", "wrong")
        return [less(i, one) if one.state in counted and not kept(i, one) else one for i, one in enumerate(meant)]


class Masked:
    """Looks for the statement that makes the first mask which only the defective reference has."""

    def __init__(self, seen: Seen, shown: Shown):
        self.seen, self.masks, self.state = seen, shown.masks, shown.state

    def first(self, before: int) -> int | None:
        """The first event, up to another one, that gives a mask which is wrong and stays so."""
        events = enumerate(self.seen.events[: before + 1])
        return next((i for i, one in events if self.state(one.value) == "wrong" and self._stays(one.value)), None)

    def _stays(self, place: int) -> bool:
        """Whether no other mask of the same size is made from it: then it was only begun with."""
        mask = self.masks[place]
        return all(one.shape != mask.shape or (one == mask).all() for one in self._made_from(place))

    def _made_from(self, place: int) -> Iterator[np.ndarray]:
        for event in self.seen.events:
            if event.value in self.masks and any(at == place for _, at in self.seen.steps[event.step].reads):
                yield self.masks[event.value]

    def place(self, first: int) -> tuple[int, int | None, str]:
        """The step of an event that gives a wrong mask; where something else may be to blame, what, and the step that
        tells of it."""
        seen, event = self.seen, self.seen.events[first]
        step, outer = seen.steps[event.step], next(iter(event.callers), None)
        unknown = [(text, at) for text, at in step.reads if at != event.value and not self._known(at)]
        if unknown:
            text, at = unknown[0]
            made = seen.first(at) if at in seen.made else outer
            if made is not None and seen.near(made, event.step) and self._sound(made):
                return made, None, ""
            return event.step, made, f"`{text}`, which is read there, is none of the reference's"
        if wrong := [text for text, at in step.reads if self.state(at) == "wrong"]:
            return event.step, outer, f"`{wrong[0]}`, which is read there, is wrong already"
        if said := self._open(event.step) or self._let_be(event):
            return event.step, outer, said
        here = seen.chain([event.step])
        right = any(self.state(one.value) == "right" and seen.chain([one.step]) == here for one in seen.events)
        return event.step, outer if right else None, "it gives right ones elsewhere" if right else ""

    def _open(self, at: int) -> str:
        """What else a mask may be wrong by that a step makes from right values: what it was told, or skipped."""
        seen, step = self.seen, self.seen.steps[at]
        if step.flags:
            return f"it hangs on `{step.flags[0]}`"
        if step.small:
            return f"`{step.small[0]}`, which is read there, has too few numbers to tell"
        if step.skipped:
            return f"what would change `{step.skipped[0]}` before did not run"
        if seen.decided_elsewhere(at, step.under) and not seen.branch_is_right(at):
            return f"it hangs on the condition in line {step.under[-1]}"
        told = (one for one in seen.given_numbers(at) if one[1] not in self._sides(at))
        return next((f"`{text}`, {number:.6g}, is given" for text, number in told), "")

    def _let_be(self, event: Event) -> str:
        """What would have changed the mask later, on a condition."""
        call = self.seen.steps[event.step].call
        later = (one for one in self.seen.steps[event.step + 1 :] if one.call == call and event.name in one.skipped)
        return f"what would change `{event.name}` later did not run" if next(later, None) is not None else ""

    def _known(self, place: int) -> bool:
        return self.seen.right(place) or self.state(place) in ("right", "wrong")

    def _sound(self, at: int) -> bool:
        """Whether a step reads only what is known."""
        return all(self._known(place) for _, place in self.seen.steps[at].reads) and not self._open(at)

    def _sides(self, at: int) -> set[float]:
        masks = [self.masks[one.value] for one in self.seen.events if one.step == at and one.value in self.masks]
        return {float(side) for one in masks for side in one.shape}
