"""From "between two lines" to the line: the port's statement that does what the reference's statement does in which the
defect stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .causes import Cause
from .operations import Called, Operation
from .seen import Seen
from .sites import Site
from .territory import FEWEST, Territory

SURE = 0.75  # of a function's values: so alike must it be where two neighbouring lines are left
WEAK = ("given it", "plain")  # rules whose first wrong value may have come from an argument, or from what is blank


@dataclass(frozen=True)
class Between:
    """Two steps that an answer lies between, the rule that gave them, the first wrong event and what is known of it."""

    at: int
    after: int | None
    rule: str
    first: int
    cause: Cause
    origin: Operation


class Narrowing:
    """A watched run, the operations of the defective reference, and where the defect stands in the reference."""

    def __init__(self, seen: Seen, operations: list[Operation], sites: list[Site], between: Between):
        self.seen, self.operations, self.sites, self.between = seen, operations, sites, between
        self.stack = seen.stack(seen.events[between.first])
        self.territory = Territory(seen, operations, self.stack)
        self.made_in = [called for called, _ in between.origin.where]

    def step(self) -> tuple[int, Site] | None:
        """The step in which all sites agree, with the first of them."""
        found = [(self._proven(site, called), site) for site in self.sites for called in self._called(site)]
        steps = {step for step, _ in found}
        return found[0] if len(steps) == 1 and None not in steps else None

    def _proven(self, site: Site, called: Called) -> int | None:
        """A step, unless its function was given what does not belong there and the reference's call makes that itself:
        then the function is only the rest of that call's work, and something may be left out before it."""
        step = self._step(site, called)
        if step is None or self._meet_within(step) or self._handed_on(step) or self._handed_out(step):
            return None
        given = {self.seen.meant[place].key for place in self.seen.call(step).values} & self.between.cause.values
        made = any(one.key in given and any(where is called for where, _ in one.where) for one in self.operations)
        return None if made else step

    def _handed_on(self, step: int) -> bool:
        """Whether a function that the step calls is given what does not belong where it is used: it may be left out in
        that as well."""
        below = range(self.stack.index(step) if step in self.stack else 0)
        given = (level for level in below if self.seen.given(self.stack[level], self.between.cause.values))
        return any(not self.seen.elsewhere(self.stack[level:], 1) for level in given)

    def _handed_out(self, step: int) -> bool:
        """Whether a function that the step calls gives what does not belong there, and may have left it out."""
        seen, keys = self.seen, self.between.cause.values
        made = next((one for one in seen.events[: self.between.first] if seen.meant[one.value].key in keys), None)
        if made is None:
            return False
        stack = seen.stack(made)
        while len(stack) > 1 and seen.sound(stack[0]):
            stack = stack[1:]
        return step in stack[1:]

    def _meet_within(self, step: int) -> bool:
        """Whether what does not belong there is made and used in one function that the step calls: it may be left out
        in that."""
        seen, keys = self.seen, self.between.cause.values
        makers = [one for one in seen.events[: self.between.first] if seen.meant[one.value].key in keys]
        if not makers:
            return False
        key = seen.meant[makers[-1].value].key
        maker = next(one for one in makers if seen.meant[one.value].key == key)
        within = {seen.steps[one].call for one in seen.stack(maker)}
        both = [call for call in (seen.steps[one].call for one in self.stack) if call in within]
        return bool(both) and seen.steps[step].call in self.territory.around(both[0])

    def _called(self, site: Site) -> list[Called]:
        """The call of a site's function that the first wrong value was made in, or the last before."""
        found = None
        for one in self.operations:
            here = next((c for c, _ in one.where if (c.file, c.function) == (site.file, site.function)), None)
            found = here or found
            if one is self.between.origin:
                found = here or found
                break
        return [found] if found else []

    def _step(self, site: Site, called: Called) -> int | None:
        seen, territory, between = self.seen, self.territory, self.between
        if self._adjacent(called):
            return between.at
        known = territory.reference[called]
        calls = territory.calls(called)
        if len(known) < FEWEST or not calls or territory.twins(called):
            return None
        made = self._made(site, called)
        inside: dict[int, int] = {}  # events that give what the site gives, and their steps in the port's part
        for index, event in enumerate(seen.events[: between.first + 1]):
            if seen.meant[event.value].key in made and self._in(seen.stack(event), calls):
                step = self._deepest(seen.stack(event), calls, called, index == between.first)
                if step is None:
                    return None
                inside[index] = step
        if between.first in inside:
            return self._unless_made_before(inside[between.first], calls, called)
        apart: list[int] = []
        for step in inside.values():
            if not any(seen.near(step, one) for one in apart):
                apart.append(step)
        if apart:  # of which nothing is wrong yet: what becomes wrong must be made in the same work
            here = len(apart) == 1 and between.rule not in ("too small", "plain") and self._in(self.stack, calls)
            return apart[0] if here else None
        return self._reader(calls, called)

    def _made(self, site: Site, called: Called) -> set[str]:
        """What the site's statements give in a call, calls inside them included, as far as tokens change it."""
        keys = {
            one.key
            for one in self.operations
            if any(where is called and line in site.lines for where, line in one.where)
        }
        return keys - {meant.key for meant in self.seen.meant if meant.still}

    def _in(self, stack: list[int], calls: set[int]) -> bool:
        return any(self.seen.steps[one].call in calls for one in stack)

    def _deepest(self, stack: list[int], calls: set[int], called: Called, wrong: bool = False) -> int | None:
        """The deepest step that still does the work of the reference's call, in the file in which that begins. None
        where it can't be told; `wrong`: of the first wrong value, whose origin must be where the stack leads."""
        seen, steps = self.seen, self.seen.steps
        level = next(level for level, one in enumerate(stack) if steps[one].call in calls)
        file, best = steps[stack[level]].file, level
        while level:
            others = self.territory.others(steps[stack[level - 1]].call, called)
            if others:
                if wrong and not any(one in self.made_in for one in others):
                    return None
                passed = level > 1 and steps[stack[level - 1]].file == file  # one call for another, as wrappers do
                if passed and not seen.near(stack[best], stack[level - 1]):
                    within = steps[stack[level - 2]].call
                    if any(self.territory.alike(within, one) >= self.territory.best(one) for one in others):
                        return None
                break
            level -= 1
            if steps[stack[level]].file == file:
                if seen.elsewhere(stack[level:], 1):
                    break
                best = level
        return stack[best]

    def _unless_made_before(self, step: int, calls: set[int], called: Called) -> int | None:
        """A step, unless what does not belong in it was made in the same part of the port, in another place."""
        seen, between = self.seen, self.between
        if between.rule in WEAK or self._switched_off(step):
            return None
        wrongly = [e for e in seen.events[: between.first] if seen.meant[e.value].key in between.cause.values]
        if wrongly:
            key = seen.meant[wrongly[-1].value].key
            stack = seen.stack(next(e for e in seen.events if seen.meant[e.value].key == key))
            if self._in(stack, calls):
                other = self._deepest(stack, calls, called)
                if other is None or not seen.near(other, step):
                    return None
                below = stack[: stack.index(other)]
                if other != step and any(seen.steps[one].file == seen.steps[other].file for one in below):
                    return None
        return step

    def _reader(self, calls: set[int], called: Called) -> int | None:
        """The first step of the port's call that reads what does not belong there, near where it is used."""
        seen, keys = self.seen, self.between.cause.values
        if not keys or not self._in(self.stack, calls):
            return None
        use = self._deepest(self.stack, calls, called)
        for number, step in enumerate(seen.steps):
            if step.call in calls and any(seen.meant[place].key in keys for _, place in step.reads):
                sure = use is not None and seen.near(number, use) and not self._switched_off(number)
                return number if sure else None
        return None

    def _switched_off(self, step: int) -> bool:
        """Whether the statement reads 0 or None, by which something may have been turned off elsewhere."""
        return bool(self.seen.steps[step].absent or self.seen.reads(step, 0.0))

    def _adjacent(self, called: Called) -> bool:
        """Whether the last right value and the first wrong one are made side by side in the port's own form of it."""
        seen, between = self.seen, self.between
        if between.after is None:
            return False
        one, other = seen.steps[between.at], seen.steps[between.after]
        if (one.file, _plain(one.function)) != (other.file, _plain(other.function)) or one.line == other.line:
            return False
        calls = self.territory.calls(called, SURE)
        beside = seen.beside(between.at, between.after)
        return beside and all(self._own(step.call, _plain(step.function), calls) for step in (one, other))

    def _own(self, call: int, function: str, calls: set[int]) -> bool:
        """Whether a call, or one of the same function that it was made in, as of a comprehension, is among some."""
        names = {step.call: _plain(step.function) for step in self.seen.steps}
        around: Iterator[int] = iter(self.territory.around(call))
        return call in calls or any(one in calls for one in around if names.get(one) == function)


def _plain(function: str) -> str:
    """The function that a comprehension or a lambda stands in."""
    return function.partition(".<locals>")[0]
