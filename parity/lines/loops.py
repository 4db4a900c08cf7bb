"""What the reference does in a loop, as one operation on all of it, which is how ports do it: routed experts on the
tokens of all experts in one array, the rows of all blocks at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from ..candidates.arrays import LARGEST
from .operations import GIVEN, VIEWS, Called, Operation, key_of


def with_joined(operations: list[Operation]) -> list[Operation]:
    """The operations, and behind the last of each loop's the joined one: its value is all that they gave, its inputs
    are all that they read in each place. Only of those of which none leads to another, as the layers of a model do."""
    groups, joining = _groups(operations), _Joining(operations)
    behind: dict[int, list[Operation]] = {}
    for members, level in groups:
        behind.setdefault(members[-1], []).extend(joining.of([operations[one] for one in members], level))
    found = []
    for index, one in enumerate(operations):
        found += [one, *behind.get(index, ())]
    return found


def _groups(operations: list[Operation]) -> list[tuple[list[int], int]]:
    """Places of operations that are the same one of a statement in all rounds of a loop, and how many calls further out
    the loop is."""
    found: dict[tuple, list[int]] = {}
    rounds: dict[tuple, int] = {}
    for index, one in enumerate(operations):
        if one.name == GIVEN or one.short in VIEWS:
            continue
        path: tuple = ()
        for level, (called, line) in enumerate(one.where):
            key = called, line, path, one.name, one.shape[1:], level
            inside = level and one.where[level - 1][0]  # the call that is a round of the loop
            rounds[key, inside] = rounds.get((key, inside), 0) + bool(level)
            found.setdefault((*key, rounds[key, inside]), []).append(index)
            path = (*path, (called.file, called.function, line))
    leads, known, kept = _leading(operations), set(), []
    for (*_, level, _), members in sorted(found.items(), key=lambda item: item[0][-2]):
        size = sum(len(operations[one].value) for one in members)
        own = 0
        for one in members:
            own |= 1 << one
        if len(members) < 2 or size >= LARGEST or tuple(members) in known:
            continue
        known.add(tuple(members))
        if not any(leads[one] & own & ~(1 << one) for one in members):
            kept.append((members, level))
    return sorted(kept, key=lambda one: one[0][-1])


def _leading(operations: list[Operation]) -> list[int]:
    """Of each operation those that lead to it, as bits of a number."""
    by_key: dict[str, int] = {}
    found = []
    for index, one in enumerate(operations):
        bits = 1 << index
        for key in one.inputs:
            bits |= by_key.get(key, 0)
        by_key[one.key] = by_key.get(one.key, 0) | bits
        found.append(bits)
    return found


class _Joining:
    """Joins operations; a call that stands for all rounds of a loop is one for all statements in it."""

    def __init__(self, operations: list[Operation]):
        self.values = {one.key: one.value for one in operations}
        self.made = set(self.values)
        self.calls: dict[tuple, Called] = {}

    def of(self, members: list[Operation], level: int) -> Iterator[Operation]:
        """The joined operation, before it what it reads that nothing gave."""
        first, given = members[0], []
        for keys in zip(*(one.given for one in members), strict=False):
            if len({*keys}) == 1:
                given.append(keys[0])
                continue
            values = [self.values[key] for key in keys]
            if sum(map(len, values)) < LARGEST:
                value = np.sort(np.concatenate(values))
                key = key_of(value)
                if key not in self.made:
                    self.made.add(key)
                    yield Operation(GIVEN, value, value, key, frozenset())
                given.append(key)
        value = np.sort(np.concatenate([one.value for one in members]))
        laid = np.concatenate([one.laid for one in members])
        key = key_of(value)
        self.made.add(key)
        numbers = first.numbers if all(one.numbers == first.numbers for one in members) else ()
        yield dataclasses.replace(
            first,
            value=value,
            laid=laid,
            key=key,
            inputs=frozenset(given),
            given=tuple(given),
            numbers=numbers,
            where=self._where(first, level),
            shape=(sum(one.shape[0] for one in members), *first.shape[1:]) if first.shape else (),
        )

    def _where(self, first: Operation, level: int) -> tuple[tuple[Called, int], ...]:
        """As the first round's, but for the calls inside the loop."""
        inner, outer = first.where[:level], first.where[level:]
        found, path = [], (outer[0],)
        for called, line in reversed(inner):
            path = (*path, called.file, called.function)
            found.append((self.calls.setdefault(path, Called(called.file, called.function)), line))
            path = (*path, line)
        return (*reversed(found), *outer)
