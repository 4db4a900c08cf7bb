"""Which calls of a port's functions do what a call of the reference's function does: by the values met inside them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import pairwise

from .operations import Called, Operation
from .seen import Seen

ALIKE = 0.6  # of the values of both, those in common: less are not the same work
PART = 0.7  # from here on a port's function is another function of the reference, that this one calls
FEWEST = 3  # values that a function of the reference has in common with the port


class Territory:
    """The calls of a watched run beside the reference's. A call's values are those given, read and made in it and in
    the calls inside it; only those count that the port has in runs of the function that `stack` begins with."""

    def __init__(self, seen: Seen, operations: list[Operation], stack: list[int]):
        self.seen = seen
        steps = seen.steps
        self.outer: dict[int, int] = {}  # calls, and the one that each was made in
        keys: dict[int, set[str]] = {}
        for event in seen.events:
            keys.setdefault(steps[event.step].call, set()).add(seen.meant[event.value].key)
            chain = [steps[one].call for one in seen.stack(event)]
            self.outer.update(pairwise(chain))
        for step in steps:
            keys.setdefault(step.call, set()).update(seen.meant[place].key for _, place in step.reads)
        for call, given in enumerate(seen.watched.calls):
            keys.setdefault(call, set()).update(seen.meant[place].key for place in given.values)
        self.port = {call: set(own) for call, own in keys.items()}
        for call, own in keys.items():
            for outer in self.around(call):
                self.port.setdefault(outer, set()).update(own)
        for own in self.port.values():
            own.discard("")
        begin = steps[stack[-1]].function
        begun = {step.call for step in steps if step.function == begin}
        met = set().union(*(own for call, own in self.port.items() if self._root(call) in begun))
        self.reference: dict[Called, set[str]] = {}
        self.inside: dict[Called, set[Called]] = {}
        for one in operations:
            chain = [called for called, _ in one.where]
            for level, called in enumerate(chain):
                self.reference.setdefault(called, set()).update({one.key, *one.inputs} & met)
                self.inside.setdefault(called, set()).update(chain[:level])
        self.best = cache(self._best)

    def around(self, call: int) -> Iterable[int]:
        """The calls that a call was made in, the nearest first."""
        while call in self.outer:
            call = self.outer[call]
            yield call

    def calls(self, called: Called, least: float = ALIKE) -> set[int]:
        """The port's calls whose values are most like those of the reference's; none where none is alike enough, or
        where one is more like a call that the reference's makes, and so only a part of its work."""
        best, alike = self.best(called), self.alike
        calls = {call for call in self.port if alike(call, called) >= best} if best >= least else set()
        part = any(alike(call, one) > best for call in calls for one in self.inside[called])
        return set() if part else calls

    def alike(self, call: int, called: Called) -> float:
        """The share of the values that both have, 0 to 1."""
        ours, theirs = self.port.get(call, set()), self.reference[called]
        return len(ours & theirs) / max(1, len(ours | theirs))

    def others(self, call: int, called: Called) -> list[Called]:
        """Calls inside the reference's call that the port's call is: not a part of it then, but one that it makes."""
        inside = (one for one in self.inside[called] if self.reference[one])
        return [one for one in inside if self.alike(call, one) >= max(PART, self.best(one))]

    def twins(self, called: Called) -> bool:
        """Whether a call inside has the same values, so that no value tells which of the two a port's call is."""
        return any(self.reference[one] == self.reference[called] for one in self.inside[called])

    def _best(self, called: Called) -> float:
        return max((self.alike(call, called) for call in self.port), default=0.0)

    def _root(self, call: int) -> int:
        return [call, *self.around(call)][-1]
