"""From a port's watched run to an answer: the line, between two lines, or not seen and why."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from ..candidates.told import Watched
from ..candidates.watching import Event
from .causes import Cause, Causes
from .masks import Masked, Shown
from .matching import Meant
from .narrowing import Between, Narrowing
from .operations import GIVEN, Operation
from .placing import Placing
from .seen import Seen, same
from .sites import Site

SAME = ("same inputs", "another operation")  # causes of which all that is read belongs there
LINE, LIKELY, BETWEEN, UNSEEN = "line", "likely", "between", "not seen"
ELSEWHERE = 2  # other places that a right function is called from: at one alone it may be right by chance
HELPERS = 2  # calls: further out than that a value is passed through more than helpers
MADE = "{what} is the first value that is what the defect makes of it"


@dataclass
class Answer:
    """kind: LINE, LIKELY, BETWEEN (`after` is a step too) or UNSEEN. `at`, `after` and `event` are places in what was
    watched; instead: the key of the value that belongs in the place of the event's; rule: which one gave the answer."""

    kind: str
    sentence: str
    rule: str
    at: int | None = None
    after: int | None = None
    event: int | None = None
    inputs_right: bool = False
    instead: str = ""


class Finding:
    """A watched run, what its values are, and the operations of the reference, as it is and with the named defects;
    without those, `wrong` is None. texts: what the probe's config says in words."""

    def __init__(
        self,
        watched: Watched,
        meant: list[Meant],
        right: list[Operation],
        wrong: list[Operation] | None,
        sites: list[Site] = (),
        texts: Set[str] = frozenset(),
    ):
        shown = Shown(watched, right, wrong or [])
        meant = shown.corrected(meant)
        self.watched, self.meant, self.seen, self.sites = watched, meant, Seen(watched, meant, texts), sites
        self.causes = Causes(right, wrong or [])
        self.kept = {one.key for one in wrong or []}
        self.masked = Masked(self.seen, shown)

    def answer(self) -> Answer:
        """Whose fault the first value is that is what the defect makes of it."""
        events, seen = self.watched.events, self.seen
        if not events:
            said = "none of its own lines gave a value that can be compared; compiled functions, kernels and programs "
            return Answer(UNSEEN, f"{said}in other languages are out of sight", "no values")
        first = next((i for i, event in enumerate(events) if self._is_wrong(event)), None)
        if first is None:
            return self._between()
        event = events[first]
        cause = self.causes.of(self.meant[event.value].key)
        found = self._not_here(first, event, cause)
        together = self.seen.together(event) if found and found.rule == "unknown" else []
        if together:
            found = self._together(first, event, cause, together) or found
        if found is None:
            found = self._misplaced(first, event, cause) if cause.values else self._otherwise(first, event, cause)
        found.event = first if found.event is None else found.event
        found.instead = cause.instead if cause.key == self.meant[event.value].key else ""
        if found.after == found.at:
            found.after = seen.last_right(first) if found.kind == BETWEEN else None
        if found.kind == BETWEEN:
            mask = self._mask(first)
            if mask is not None and mask.kind == LINE:
                return mask
            narrowed = self._narrowed(found, first, cause) if self.sites and not self._sites_are_right(first) else found
            found = narrowed if narrowed.kind == LIKELY else mask or found
        return self._unless_later(found, first, cause) if found.kind in (LINE, LIKELY) else found

    def _together(self, first: int, event: Event, cause: Cause, steps: list[int]) -> Answer | None:
        """The line, where the first wrong value is made in one place of right values."""
        found = self._misplaced(first, event, cause) if cause.values else self._otherwise(first, event, cause)
        if found.kind != LINE or found.at != event.step:
            return None
        lines = sorted({self.seen.steps[one].line for one in steps} - {self.seen.steps[found.at].line})
        if lines:
            found.sentence += (
                f"; what is read there is made in line {' and '.join(map(str, lines))}, which may be it as well"
            )
        found.inputs_right = False
        return found

    def _sites_are_right(self, before: int) -> bool:
        """Whether the port computes, in the functions in which the defect stands, what that does not leave right: it
        goes wrong in another place then, and the defect only gives the same in the end."""
        functions = {(one.file, one.function) for one in self.sites}
        lost = {
            one.key
            for one in self.causes.right
            if one.key not in self.kept and any((c.file, c.function) in functions for c, _ in one.where)
        }
        return any(self._key(i) in lost for i in range(before) if self.seen.right(self.watched.events[i].value))

    def _mask(self, before: int) -> Answer | None:
        """The statement that makes the first mask which only the defective reference has."""
        first = self.masked.first(before)
        if first is None:
            return None
        step, other, but = self.masked.place(first)
        said = f"{self._what(self.watched.events[first])} is the first mask that hides, or shows, what the defect does"
        if not but:
            return Answer(LINE, said, "mask", step, event=first, inputs_right=True)
        return Answer(BETWEEN, f"{said}; {but}", "mask", step, other, first)

    def _unless_later(self, found: Answer, first: int, cause: Cause) -> Answer:
        """The line, unless a condition before it has not let through what would change what is read there, or a right
        port may have the wrong value too, and changes it later."""
        step, keys, key = self.seen.steps[found.at], cause.values or cause.inputs, self._key(first)
        skipped = [text for text, place in step.reads if text in step.skipped and self.meant[place].key in keys]
        made = MADE.format(what=self._what(self.watched.events[first]))
        belongs = cause.how in SAME  # what is read belongs there then
        if (
            skipped
            and not belongs
            and self.seen.conditions_open(found.at, [line for line, _ in step.tested if line not in step.under])
        ):
            name = skipped[0]
            said, after = f"{made}; what would change `{name}` before did not run", self.seen.last_right(first)
            return Answer(BETWEEN, said, "skipped", found.at, after, found.event)
        if self.causes.later(key, cause):
            said = f"{made}; what is left out may as well be left out later"
            return Answer(BETWEEN, said, "later", self._used(first, cause), found.at, found.event)
        return found

    def _used(self, first: int, cause: Cause) -> int | None:
        """The step of the first wrong value that no right port computes; else of the first one."""
        wrong = (i for i, one in enumerate(self.watched.events) if i > first and self._is_wrong(one))
        used = next((i for i in wrong if not self.causes.later(self._key(i), cause)), first)
        return self.watched.events[used].step

    def _key(self, event: int) -> str:
        return self.meant[self.watched.events[event].value].key

    def _narrowed(self, found: Answer, first: int, cause: Cause) -> Answer:
        """The likely line, where it can be told from what the reference does in the place of the defect: ports may do
        that in another function, and what of it is left out there then is not told by values."""
        origin = self.causes.origin(self.meant[self.watched.events[first].value].key)
        between = Between(found.at, found.after, found.rule, first, cause, origin)
        kept = [one for one in self.sites if not one.inserted]
        told = Narrowing(self.seen, self.causes.wrong, kept, between).step() if len(kept) == len(self.sites) else None
        told = told or Placing(self.seen, self.causes.wrong, self.sites, between).step()
        if told is None:
            return found
        step, site = told
        said = f"likely here: this does what `{site.function}` does in the reference, and there the defect stands "
        said += f"({site.file}); "
        said += MADE.format(what=self._what(self.watched.events[first]))
        return Answer(LIKELY, said, f"its place, {found.rule}", step, event=found.event, instead=found.instead)

    def _not_here(self, first: int, event: Event, cause: Cause) -> Answer | None:
        """Where the step only passes on what is wrong, or nobody sees what it reads."""
        seen, made = self.seen, MADE.format(what=self._what(event))
        reads = seen.steps[event.step].reads
        wrong = [one for one in reads if self.meant[one[1]].state == "wrong" and one[1] != event.value]
        if wrong:
            text, place = wrong[0]
            stack = seen.stack(event)
            while len(stack) > 1 and place in seen.call(stack[0]).values:
                stack = stack[1:]
            said = f"what is passed on here as `{text}` is what the defect makes of it"
            read = [one for _, one in seen.steps[stack[0]].reads]
            unknown = any(self.meant[one].state == "other" for one in read)
            if place in read or unknown:  # made before, or of something else
                return Answer(BETWEEN, said, "given before", stack[0], seen.last_right(first))
            return Answer(LINE, said, "given", stack[0])
        if blank := seen.blank(event):
            text, place = blank
            said = f"{made}; `{text}`, which is the same everywhere, leads there"
            return Answer(BETWEEN, said, "blank", event.step, seen.first(place))
        if cause.plain and cause.values:
            said = f"{made}; something that is the same everywhere leads there"
            return Answer(BETWEEN, said, "plain", event.step, seen.last_bound(event))
        if unknown := seen.unknown(first):
            said = f"{made}; before it the reference does not know `{unknown}`"
            return Answer(BETWEEN, said, "unknown", event.step, seen.last_right(first))
        step = seen.steps[event.step]
        if small := [one for one in step.small if not one.startswith("self.")]:
            said = f"{made}; `{small[0]}`, which is read there, has too few numbers to tell"
            return Answer(BETWEEN, said, "too small", event.step, seen.last_right(first))
        nothing = (
            not step.reads and not step.numbers and not any(event.step in one.callers for one in self.watched.events)
        )
        if cause.name == GIVEN or nothing:
            said = f"{made}; what leads there was made before, where nobody saw it"
            return Answer(BETWEEN, said, "made before", event.step, seen.last_right(first))
        return None

    def _otherwise(self, first: int, event: Event, cause: Cause) -> Answer:
        """The right values are read, and another operation or another number makes the wrong one."""
        seen, stack, made = self.seen, self.seen.stack(event), MADE.format(what=self._what(event))
        number = next((one for one in cause.numbers if one and seen.reads(stack[0], one)), None)
        if number is not None:
            return self._number(stack, number, made)
        used = stack
        while len(stack) > 1 and seen.elsewhere(stack, ELSEWHERE):
            stack = stack[1:]
        if stack is not used:
            said = f"{made}, in a function that is right elsewhere: look at what it is called with"
            return Answer(BETWEEN, said, "elsewhere", used[0], stack[0])
        values = seen.call(stack[0]).values
        turned = [one for one in values if self.meant[one].key in cause.inputs and not self.meant[one].laid]
        if turned and len(stack) > 1:
            said = f"{made}; it is given the right numbers, in another layout than the reference's"
            return Answer(BETWEEN, said, "turned", stack[0], stack[1])
        if self.meant[event.value].mask:  # of masks only how many ones they have is compared
            return Answer(BETWEEN, f"{made}, as far as a mask can tell", "mask", stack[0], seen.last_right(first))
        placed = cause.how == "another place" and seen.given(stack[0], cause.inputs)
        placed = placed or (cause.how in ("new", "another place") and not self._of_tokens(cause))
        if cause.plain or (placed and len(stack) > 1):
            outer = stack[1] if len(stack) > 1 else seen.last_right(first)
            return Answer(BETWEEN, f"{made}; look at what it is given too", "given it", stack[0], outer)
        while cause.how in ("new", "another place") and stack:  # perhaps nothing should be done here
            under = seen.steps[stack[0]].under
            if under and (stack[0] != used[0] or seen.conditions_open(stack[0], under)):
                said = f"{made}; it hangs on the condition in line {under[-1]}"
                return Answer(BETWEEN, said, "condition", event.step, stack[0])
            stack = stack[1:] if seen.given(stack[0], cause.inputs) else []
        stack = stack or used
        said = f"all that is read here is right, and {self._what(event)} is what the defect makes of it"
        return Answer(LINE, said, "otherwise", stack[0], inputs_right=True)

    def _of_tokens(self, cause: Cause) -> bool:
        """Whether the defect's operation is done to what comes of the tokens, not to a table of its own."""
        live = frozenset(one.key for one in self.meant if one.state == "right" and not one.still)
        return any(one in live or self.causes.leads(live, one, frozenset()) for one in cause.inputs)

    def _number(self, stack: list[int], number: float, made: str) -> Answer:
        """A number that the defect has: where it was chosen."""
        seen = self.seen
        while len(stack) > 1 and any(same(one, number) for one in seen.call(stack[0]).numbers):
            stack = stack[1:]
        names = seen.reads(stack[0], number)
        if not names:
            said = f"the number {number:.6g} stands here, which is the defect's"
            return Answer(LINE, said, "number here", stack[0], inputs_right=True)
        bound = seen.bound(names[0], number)
        here = [one for one in bound if seen.steps[one].call == seen.steps[stack[0]].call]
        if here:
            said = f"`{names[0]}` becomes {number:.6g} here, which is the defect's number"
            return Answer(LINE, said, "number bound", here[-1], inputs_right=True)
        if seen.number_used(stack[0], number):
            said = f"`{names[0]}`, {number:.6g}, is right by itself, but does not belong here"
            return Answer(LINE, said, "number used", stack[0], inputs_right=True)
        said = f"{made}; `{names[0]}`, {number:.6g}, is the defect's number"
        return Answer(BETWEEN, said, "number", stack[0], bound[-1] if bound else None)

    def _misplaced(self, first: int, event: Event, cause: Cause) -> Answer:
        """What is read is right, but does not belong there: the mistake is between where it is made and this."""
        seen, stack, keys = self.seen, self.seen.stack(event), cause.values
        while len(stack) > 1 and seen.given(stack[0], keys) and seen.sound(stack[0]):
            stack = stack[1:]
        use, maker = stack[0], seen.maker(keys, first)
        said = f"what is used here is right by itself, but does not belong here: {self._what(event)} is what the "
        said += "defect makes of it"
        there = any(self.meant[one.value].key in cause.expected for one in self.watched.events[:first])
        top = stack
        while len(top) > 1 and seen.elsewhere(top, 1):
            top = top[1:]
        if top is not stack:
            if maker is not None and seen.near(maker, top[0]) and stack.index(top[0]) <= HELPERS:
                return Answer(LINE, f"{said}; something is left out", "left out", top[0])
            said = f"{said}, in a function that is right elsewhere"
            if maker is not None:
                return Answer(BETWEEN, said, "misplaced elsewhere", top[0], maker)
            if seen.depends_on_more(top[0]) or seen.set_elsewhere(top[0]):
                return Answer(BETWEEN, said, "misplaced elsewhere", use, top[0])
            return Answer(LINE, f"{said}: it is called here with what is not for it", "called", top[0])
        if there and not seen.given(use, keys):
            return Answer(LINE, f"{said}; what belongs there was made before", "misplaced", stack[0])
        if maker is None and any(seen.given(one, keys) for one in stack):
            return Answer(BETWEEN, said, "misplaced, given", use, seen.last_right(first))
        if names := seen.reads(use, 0.0):  # which added, or multiplied and added, leaves a value as it was
            bound = seen.bound(names[0], 0.0)
            if not bound or any(not seen.same_place(one, bound[0]) for one in bound):
                outer = stack[1] if len(stack) > 1 else maker
                return Answer(BETWEEN, f"{said}; `{names[0]}` is 0 here", "zero", use, outer)
            if seen.constant(bound[0], names[0]):
                said = f"`{names[0]}` becomes 0 here, by which what belongs there is turned off"
                return Answer(LINE, said, "zero bound", bound[0])
            return Answer(BETWEEN, f"{said}; `{names[0]}` is 0 here", "zero", use, bound[0])
        if maker is None:
            if told := next(seen.given_numbers(use), None):
                outer = stack[1] if len(stack) > 1 else seen.last_right(first)
                return Answer(BETWEEN, f"{said}; `{told[0]}`, {told[1]:.6g}, is given", "told", use, outer)
            return Answer(LINE, said, "left out inside", use, inputs_right=True)
        if seen.near(maker, use) and seen.stack(event).index(use) <= HELPERS:
            if name := seen.one_beside(use):
                outer = stack[1] if len(stack) > 1 else maker
                return Answer(BETWEEN, f"{said}; `{name}` is 1 here", "zero", use, outer)
            return Answer(LINE, f"{said}; something is left out", "left out", use)
        said = f"the value made first is right, but where it is used another belongs: {self._what(event)} is what the "
        said += "defect makes of it"
        used = (one for one in seen.used_as(use, keys) if self.causes.leads(keys, one, cause.expected))
        if next(used, None) and not seen.given(use, keys):
            return Answer(LINE, f"{said}; other lines use it rightly", "used", use)
        return Answer(BETWEEN, said, "left out between", use, maker)

    def _between(self) -> Answer:
        """The first value that is none of the reference's and that leads to none, and the last right one before it."""
        events, seen = self.watched.events, self.seen
        if not any(seen.right(one.value) and not self.meant[one.value].still for one in events):
            return Answer(UNSEEN, "none of its own lines gives a value of the reference's", "none right")
        useful = seen.leading()
        astray = (
            index
            for index, one in enumerate(events)
            if self.meant[one.value].state == "other" and one.value not in useful and seen.follows(one)
        )
        first = next(astray, None)
        if first is None:
            said = "every value of its own lines that can be compared is the reference's, or leads to one"
            return Answer(UNSEEN, said, "all right")
        said = f"{self._what(events[first])} is the first value that is none of the reference's and leads to none"
        return Answer(BETWEEN, said, "last right", events[first].step, seen.last_right(first), first)

    def _is_wrong(self, event: Event) -> bool:
        meant = self.meant[event.value]
        return meant.state == "wrong" and meant.key in self.causes.anew

    def _what(self, event: Event) -> str:
        name = f"`{event.name}`"
        return name if event.name != "return" else f"what `{self.seen.steps[event.step].function}` returns"
