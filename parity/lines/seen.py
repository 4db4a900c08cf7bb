"""What a watched run tells of its steps: where a value comes from, whether a function is right elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Set

from ..candidates.told import Watched
from ..candidates.watching import Call, Event, Step
from .matching import Meant

NEAR = 3  # lines apart, two statements of a function are one place


class Seen:
    """A watched run and what its values are. Steps and events are their places in it."""

    def __init__(self, watched: Watched, meant: list[Meant], texts: Set[str] = frozenset()):
        self.texts = texts  # what the port was told in words
        self.steps, self.events, self.watched, self.meant = watched.steps, watched.events, watched, meant
        self.made = {event.value for event in self.events}
        self.readers: dict[str, list[int]] = {}  # events by the keys of what their step reads
        self.ways: dict[tuple, set[tuple]] = {}  # where the functions of right steps were called from
        for index, event in enumerate(self.events):
            for _, place in self.steps[event.step].reads:
                self.readers.setdefault(meant[place].key, []).append(index)
            if self.right(event.value) and not meant[event.value].still:
                chain = self.chain([event.step, *event.callers])
                for level, one in enumerate(chain):
                    self.ways.setdefault(one, set()).add(chain[level + 1 :])

    def right(self, place: int) -> bool:
        return self.meant[place].state == "right"

    def call(self, step: int) -> Call:
        """The call of a function that the step belongs to."""
        return self.watched.calls[self.steps[step].call]

    def stack(self, event: Event) -> list[int]:
        """Its step and those that it was called from."""
        return [event.step, *event.callers]

    def chain(self, steps: list[int]) -> tuple[tuple[str, int], ...]:
        """Their files and lines."""
        return tuple((self.steps[one].file, self.steps[one].line) for one in steps)

    def given(self, step: int, keys: frozenset[str]) -> bool:
        """Whether the step's function was given one of these values."""
        return any(self.meant[place].key in keys for place in self.call(step).values)

    def reads(self, step: int, number: float) -> list[str]:
        """What the step reads a number from."""
        return [text for text, one in self.steps[step].numbers if same(one, number)]

    def elsewhere(self, stack: list[int], least: int) -> bool:
        """Whether the first of these steps gives right values too where its function is called from as many other
        places than here."""
        (here, *by) = self.chain(stack)
        return len(self.ways.get(here, set()) - {tuple(by)}) >= least

    def conditions_open(self, step: int, lines: list[int]) -> bool:
        """Whether the conditions in some lines may be decided elsewhere, by what they read, or, unless the config's own
        words decide them, stand too far from the step to be one place with it."""
        tested = dict(self.steps[step].tested)
        far = (line for line in lines if line < self.steps[step].line - NEAR and not tested.get(line))
        return not lines or self.decided_elsewhere(step, lines) or next(far, None) is not None

    def decided_elsewhere(self, step: int, lines: list[int]) -> bool:
        """Whether conditions read more than arrays and the config's own words, or did not run."""
        tested = {line: {text for _, text in read} for line, read in self.steps[step].tested}
        return any(line not in tested or not tested[line] <= self.texts for line in lines)

    def sound(self, step: int) -> bool:
        """Whether a statement gives in another call what is right and is used rightly."""
        here: Step = self.steps[step]
        for event in self.events:
            other, meant = self.steps[event.step], self.meant[event.value]
            if (other.file, other.line) == (here.file, here.line) and other.call != here.call:
                right = meant.state == "right" and not meant.still
                if right and any(self._well_used(meant.key, index) for index in self.readers.get(meant.key, ())):
                    return True
        return False

    def used_as(self, step: int, keys: frozenset[str]) -> Iterator[str]:
        """The right values that other statements of a step's call make of what it reads of these values."""
        here = self.steps[step]
        for key in {self.meant[place].key for _, place in here.reads} & keys:
            for index in self.readers[key]:
                other = self.steps[self.events[index].step]
                if other.call == here.call and self._well_used(key, index):
                    yield self.meant[self.events[index].value].key

    def _well_used(self, key: str, reader: int) -> bool:
        given = self.events[reader].value
        return self.right(given) and not self.meant[given].still and self.meant[given].key != key

    def one_beside(self, step: int) -> str:
        """What the function was given and is 1 in a statement near a step: multiplied, it leaves a value as it was."""
        beside = (i for i, one in enumerate(self.steps) if one.call == self.steps[step].call and self.near(i, step))
        return next((text for one in beside for text, number in self.given_numbers(one) if number == 1), "")

    def number_used(self, step: int, number: float) -> bool:
        """Whether another statement reads this number and gives what is right."""
        (here,) = self.chain([step])
        return any(
            self.right(event.value) and self.chain([event.step]) != (here,) and self.reads(event.step, number)
            for event in self.events
        )

    def bound(self, name: str, number: float) -> list[int]:
        """Steps that bound a number to this name or attribute."""
        return [one.step for one in self.watched.bound if one.name == name and same(one.number, number)]

    def constant(self, step: int, name: str) -> bool:
        """Whether a statement that binds an attribute reads nothing, hangs on no condition, and is the only one of its
        class that does."""
        one = self.steps[step]
        alone = any(bound.alone for bound in self.watched.bound if (bound.step, bound.name) == (step, name))
        return alone and not (one.reads or one.numbers or one.small or one.absent or one.under)

    def maker(self, keys: frozenset[str], before: int) -> int | None:
        """The step that made the last of these values; where a sound statement made it, the one that called it."""
        last = next((one for one in reversed(self.events[:before]) if self.meant[one.value].key in keys), None)
        if last is None:
            return None
        key = self.meant[last.value].key
        stack = self.stack(next(one for one in self.events if self.meant[one.value].key == key))
        while len(stack) > 1 and self.sound(stack[0]):
            stack = stack[1:]
        return stack[0]

    def near(self, one: int, other: int) -> bool:
        """Whether two steps are one place of one call."""
        return self.steps[one].call == self.steps[other].call and self.beside(one, other)

    def same_place(self, one: int, other: int) -> bool:
        """Whether two steps are one place of a file, whatever the call."""
        return self.steps[one].file == self.steps[other].file and self.beside(one, other)

    def beside(self, one: int, other: int) -> bool:
        """Whether their lines are near each other, whatever the call."""
        a, b = self.steps[one], self.steps[other]
        return a.line - NEAR <= b.end and b.line - NEAR <= a.end

    def last_right(self, before: int) -> int | None:
        """The step that gave the last right value, in the same call if there is one."""
        call = self.steps[self.events[before].step].call
        right = [one for one in self.events[:before] if self.right(one.value)]
        here = [one.step for one in right if self.steps[one.step].call == call]
        there = [one.step for one in right if not self.meant[one.value].still]
        return (here or there or [None])[-1]

    def leading(self) -> set[int]:
        """Values that a right one was made from."""
        found: set[int] = set()
        for event in reversed(self.events):
            if event.value in found or (self.right(event.value) and not self.meant[event.value].still):
                found.update(place for _, place in self.steps[event.step].reads)
        return found

    def follows(self, event: Event) -> bool:
        """Whether its step reads a right value that tokens change."""
        read = [place for _, place in self.steps[event.step].reads]
        return any(self.right(place) and not self.meant[place].still for place in read)

    def unknown(self, index: int) -> str | None:
        """What an event's step reads, or was given by a function that it called, and is none of the reference's."""
        event = self.events[index]
        for text, place in self.steps[event.step].reads:
            if place != event.value and self.meant[place].state == "other":
                return text
        inner = (one for one in self.events[:index] if event.step in one.callers)
        unknown = (one for one in inner if self.meant[one.value].state == "other" and not self.meant[one.value].still)
        return next((f"what {self.steps[one.step].function} gives" for one in unknown), None)

    def given_numbers(self, step: int) -> Iterator[tuple[str, float]]:
        """The plain numbers that a step reads and its function was given."""
        call, given = self.steps[step].call, self.call(step).numbers
        for text, number in self.steps[step].numbers:
            local = any(self.steps[one].call == call for one in self.bound(text, number))
            if "." not in text and not local and any(same(one, number) for one in given):
                yield text, number

    def together(self, event: Event) -> list[int]:
        """An event's step and those that made, of right values alone, what it reads and the reference does not know,
        where all of them are one place: then the mistake is there. Else nothing."""
        found, todo = [], [event.step]
        while todo:
            step = todo.pop()
            if not self.near(step, event.step) or self.depends_on_more(step):
                return []
            found.append(step)
            for _, place in self.steps[step].reads:
                state = self.meant[place].state
                if place == event.value or state == "right":
                    continue
                made = [one.step for one in self.events if one.value == place and one.step <= step]
                if state != "other" or not made:
                    return []
                todo += [one for one in made if one not in found and one not in todo]
        return [] if any(self._unknown_inside(one) for one in found) else found

    def _unknown_inside(self, step: int) -> bool:
        """Whether a function that a step calls gives what the reference does not know."""
        inner = (self.meant[one.value] for one in self.events if step in one.callers)
        return any(one.state == "other" and not one.still for one in inner)

    def depends_on_more(self, step: int) -> bool:
        """Whether a step depends on more than the values that it reads."""
        one = self.steps[step]
        branch = one.under and self.conditions_open(step, one.under) and not self.branch_is_right(step)
        return bool(branch or one.flags or one.small or one.skipped or [*self.given_numbers(step)])

    def set_elsewhere(self, step: int) -> bool:
        """Whether a step reads a plain number from an object that other than one statement, by itself, may have set."""
        numbers = (one for one in self.steps[step].numbers if "." in one[0])
        by = ([self.constant(one, text) for one in self.bound(text, number)] for text, number in numbers)
        return any(not found or not all(found) for found in by)

    def branch_is_right(self, at: int) -> bool:
        """Whether beside a step, on the same condition, something is right that tokens change."""
        step = self.steps[at]
        beside = (one for one in self.events if self.steps[one.step].call == step.call)
        right = (one for one in beside if self.right(one.value) and not self.meant[one.value].still)
        return any(self.steps[one.step].under == step.under for one in right)

    def blank(self, event: Event) -> tuple[str, int] | None:
        """What an event's step reads, made in the run, and is the same everywhere, as a mask that hides nothing."""
        reads = self.steps[event.step].reads
        return next((one for one in reads if self.meant[one[1]].state == "plain" and self._is_local(*one)), None)

    def first(self, place: int) -> int:
        """The step that made a value of the run."""
        return next(one.step for one in self.events if one.value == place)

    def last_bound(self, event: Event) -> int | None:
        """The last step before an event that made one of the values that its step reads."""
        made = [self.first(place) for _, place in self.steps[event.step].reads if place in self.made]
        return max((one for one in made if one < event.step), default=None)

    def _is_local(self, text: str, place: int) -> bool:
        return place in self.made and not text.startswith("self.")


def same(one: float, other: float) -> bool:
    """Whether two numbers are one, but for rounding."""
    return abs(one - other) <= 1e-6 * abs(other)
