"""What a defect does to the reference's first wrong value: another operation, or one on what does not belong there."""

from __future__ import annotations

from dataclasses import dataclass

from .operations import Operation

# By the names of torch's operations: what takes or lays together numbers as they are, and what is done to each number.
SELECTS = {
    "slice",
    "select",
    "index",
    "index_select",
    "gather",
    "cat",
    "stack",
    "split",
    "unbind",
    "expand",
    "_to_copy",
}
SCALES = {"mul", "div"}
EACH = {*SCALES, "add", "sub", "neg", "exp", "pow", "relu", "clamp", "clamp_min", "clamp_max", "minimum", "maximum"}
EACH |= {"sigmoid", "silu", "sqrt", "rsqrt", "softplus", "tanh", "abs", "_to_copy"}
LINEAR = {*SELECTS, *SCALES, "mm", "bmm", "sum", "neg"}
FAR = 10  # operations: what was left out between two values is no longer than that


@dataclass(frozen=True)
class Cause:
    """values: keys of what is read and does not belong there; expected: keys of what does. Without values the same
    things are read, and the operation is another, or its `numbers`. name, key and inputs: of the operation. instead:
    the key of what the right reference computes in its place, where it is known. plain: whether all numbers that it
    gives are equal, or those that do not belong there."""

    name: str
    values: frozenset[str] = frozenset()
    expected: frozenset[str] = frozenset()
    numbers: tuple[float, ...] = ()
    how: str = ""
    key: str = ""
    inputs: frozenset[str] = frozenset()
    instead: str = ""
    plain: bool = False


class Causes:
    """Two runs of the reference, as it is and with defects, as graphs of operations."""

    def __init__(self, right: list[Operation], wrong: list[Operation]):
        self.right, self.wrong = right, wrong
        self.made: dict[str, Operation] = {}
        for one in right:
            self.made.setdefault(one.key, one)
        self.anew: dict[str, Operation] = {}
        for one in wrong:
            if one.key not in self.made:
                self.anew.setdefault(one.key, one)
        self.plain = {one.key for one in (*right, *wrong) if one.plain}
        self.order = {key: index for index, key in enumerate(self.anew)}

    def of(self, key: str) -> Cause:
        """Of a value that only the defective reference computes: what its first operation does that the right one
        lacks."""
        first = self.origin(key)

        def cause(values: frozenset[str] = frozenset(), expected: frozenset[str] = frozenset(), **more) -> Cause:
            plain = first.plain or bool(values & self.plain)
            return Cause(first.name, values, expected, key=first.key, inputs=first.inputs, plain=plain, **more)

        same = [one for one in self.right if one.name == first.name]
        if alike := [one for one in same if one.inputs == first.inputs]:  # the one that stands in the same place
            before = [one for one in self.wrong if one.name == first.name and one.inputs == first.inputs]
            beside = alike[min(before.index(first), len(alike) - 1)]
            numbers = tuple(one for one in first.numbers if one not in beside.numbers)
            return cause(numbers=numbers, how="same inputs", instead=beside.key)
        if len(first.inputs) > 1 and any(one.inputs == first.inputs for one in self.right):
            return cause(how="another operation")
        if shared := max((len(one.inputs & first.inputs) for one in same), default=0):
            place = [one for one in self.wrong if one.name == first.name].index(first)
            near = [i for i, one in enumerate(same) if len(one.inputs & first.inputs) == shared]
            beside = same[min(near, key=lambda i: abs(i - place))]
            values, expected = first.inputs - beside.inputs, beside.inputs - first.inputs
            if values and expected:
                return cause(values, expected, how="another operand", instead=beside.key)
        for one in same:
            for given in one.inputs:
                if passed := self.near(given) & first.inputs:
                    return cause(frozenset(passed), frozenset({given}), how="left out", instead=one.key)
        return cause(numbers=first.numbers, how="another place" if same else "new")

    def origin(self, key: str) -> Operation:
        """The first operation that leads to a value and whose result the right reference does not compute."""
        todo, seen = [key], set()
        while todo:
            one = todo.pop()
            if one in self.anew and one not in seen:
                seen.add(one)
                todo += self.anew[one].inputs
        return self.anew[min(seen, key=self.order.__getitem__)]

    def later(self, key: str, cause: Cause) -> bool:
        """Whether a right port may compute this value too, as it does later what the defect leaves out: to each number
        of what is only selected before, or by a number to what is linear."""
        left = [one for given in cause.expected for one in self._path(given, cause.values)]
        names = {_name(one) for one in left}
        if not left or not names <= EACH:
            return False
        scaled = names <= SCALES and all(len(one.inputs) == 1 for one in left)
        todo, done = [key], set()
        while todo:
            one = todo.pop()
            if one in self.anew and one not in done:
                done.add(one)
                todo += self.anew[one].inputs
        return {_name(self.anew[one]) for one in done} <= (LINEAR if scaled else SELECTS)

    def _path(self, key: str, start: frozenset[str]) -> list[Operation]:
        """The right operations that lead from some values to another one, a few at most; none where there is no way."""
        todo, found = [(key, ())], []
        while todo:
            one, way = todo.pop()
            if one in start:
                found += way
            elif one in self.made and len(way) < FAR and self.made[one] not in way:
                todo += [(given, (*way, self.made[one])) for given in self.made[one].inputs]
        return found

    def leads(self, start: frozenset[str], key: str, but: frozenset[str]) -> bool:
        """Whether a right value is made from some others, a few operations back, and not only by way of third ones."""
        edge = {key} - but
        for _ in range(FAR):
            edge = {given for one in edge if one in self.made for given in self.made[one].inputs} - but
            if edge & start:
                return True
        return False

    def near(self, key: str) -> set[str]:
        """What a right value is made from, a few operations back."""
        found, edge = set(), {key}
        for _ in range(FAR):
            edge = {given for one in edge if one in self.made for given in self.made[one].inputs} - found
            found |= edge
        return found


def _name(operation: Operation) -> str:
    """As torch calls it, in place or not."""
    return operation.short.removesuffix("_")
