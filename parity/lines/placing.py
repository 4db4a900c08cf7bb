"""The second way from "between two lines" to the line: the port does in one statement what the reference does in
several, so that what the defect's own statement gives is not met in it."""

from __future__ import annotations

from .narrowing import Narrowing
from .operations import Called
from .sites import Site
from .territory import ALIKE, FEWEST, PART

# Rules after which what is read, or what it hangs on, may itself be wrong: its place then says nothing.
OPEN = ("unknown", "too small", "condition", "zero", "plain")
# Rules whose two ends are where a value is made and where it is used although another belongs there.
LEFT_OUT = ("left out between", "misplaced elsewhere")
# Rules whose two ends stand in two functions, so that the reference's own form can choose.
APART = (*LEFT_OUT, "turned", "blank")


class Placing(Narrowing):
    """As `Narrowing`, by what comes behind the site's statements in the reference, and by which end is its work."""

    def _step(self, site: Site, called: Called) -> int | None:
        territory = self.territory
        if territory.twins(called) or len(territory.reference[called]) < FEWEST:
            return None
        found = territory.best(called) >= ALIKE
        step = self._behind(site, called) if found else None
        if step is None and not site.inserted:
            step = (self._end(called) if found else None) or self._inlined(called)
        return None if step is None or self._switched_off(step) else step

    def _behind(self, site: Site, called: Called) -> int | None:
        """The step of the first wrong value, if the reference begins to be wrong in the site's statements and makes
        that value in the same call: the port's step reads what is right before and gives what is wrong behind."""
        seen, between = self.seen, self.between
        first = seen.meant[seen.events[between.first].value].key
        made = next(one for one in self.operations if one.key == first)
        begun = any(where is called and line in site.lines for where, line in between.origin.where)
        if not begun or between.cause.plain or between.rule in OPEN or all(one is not called for one, _ in made.where):
            return None
        calls = self._alike(called)
        step = self._deepest(self.stack, calls, called, True) if self._in(self.stack, calls) else None
        if step is None or (step != self.stack[0] and self._made_within(calls)):
            return None
        guilty = self.stack  # a helper that is right elsewhere does only what it is asked for
        while len(guilty) > 1 and seen.elsewhere(guilty, 1):
            guilty = guilty[1:]
        return step if seen.near(guilty[0], step) else None

    def _alike(self, called: Called) -> set[int]:
        """The calls around the first wrong value that do the work of the reference's; not only the most alike, which
        may be a wrapper."""
        around = (self.seen.steps[one].call for one in self.stack)
        return {call for call in around if self.territory.alike(call, called) >= ALIKE}

    def _made_within(self, calls: set[int]) -> bool:
        """Whether what does not belong there was made in these calls: it may have been left out there too."""
        seen = self.seen
        for event in seen.events[: self.between.first]:
            if seen.meant[event.value].key in self.between.cause.values and self._in(seen.stack(event), calls):
                return True
        return False

    def _end(self, called: Called) -> int | None:
        """The end that is the work of the reference's call, where the other is not."""
        between = self.between
        if between.after is None or between.rule not in APART:
            return None
        at, after = self._works(between.at, called), self._works(between.after, called)
        if at == after:
            return None
        step = between.at if at else between.after
        return None if self._far(step, called) else step

    def _inlined(self, called: Called) -> int | None:
        """The end whose value the reference makes in its call, where the other's is made elsewhere: ports do this
        without a function of its own."""
        seen, between = self.seen, self.between
        if between.after is None or between.rule not in LEFT_OUT:
            return None
        keys = between.cause.values
        passed = [one for one in seen.events[: between.first] if seen.meant[one.value].key in keys]
        if not passed:
            return None
        at = self._made_in(seen.meant[seen.events[between.first].value].key, called)
        after = self._made_in(seen.meant[passed[-1].value].key, called)
        if at == after:
            return None
        step = between.at if at else between.after
        if seen.given(step, keys):  # then it may be left out where that is called
            return None
        apart = (one.step for one in seen.events if self._reads(one.step, keys) and not seen.beside(one.step, step))
        works = (one for one in apart if self._gives(one, called) and seen.steps[one].file == seen.steps[step].file)
        return None if next(works, None) is not None else step

    def _made_in(self, key: str, called: Called) -> bool:
        """Whether a value is first made in a call of the reference's, or in those inside it."""
        made = next((one for one in self.operations if one.key == key), None)
        return made is not None and any(one is called for one, _ in made.where)

    def _gives(self, step: int, called: Called) -> bool:
        """Whether a step gives a value that the reference makes in its call."""
        given = (one for one in self.seen.events if one.step == step)
        return any(self._made_in(self.seen.meant[one.value].key, called) for one in given)

    def _reads(self, step: int, keys: frozenset[str]) -> bool:
        return any(self.seen.meant[place].key in keys for _, place in self.seen.steps[step].reads)

    def _far(self, step: int, called: Called) -> bool:
        """Whether a statement of the same work reads the value in question further away: something may be left out
        there as well."""
        seen, between = self.seen, self.between
        keys = between.cause.inputs if between.rule == "turned" else between.cause.values
        reads = [
            number
            for number, one in enumerate(seen.steps)
            if one.file == seen.steps[step].file and self._reads(number, keys)
        ]
        return any(not seen.beside(one, step) and self._works(one, called) for one in reads)

    def _works(self, step: int, called: Called) -> bool:
        """Whether a step's function does the reference's call, or a part of it: most of what is met in the part is the
        call's, and it is no other call that this makes."""
        territory, call = self.territory, self.seen.steps[step].call
        for one in (call, *territory.around(call)):
            if territory.others(one, called):
                return False
            if territory.alike(one, called) >= ALIKE:
                return True
            own = territory.port.get(one, set())
            if len(own & territory.reference[called]) < max(1, PART * len(own)):
                return False
        return False
