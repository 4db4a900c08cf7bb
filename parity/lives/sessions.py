"""What lives: a cache, and the tokens that each of its sequences has seen."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field


@dataclass
class Sequence:
    """Tokens that a cache has seen, and the most that it ever had, before it was rewound."""

    ids: list[int] = field(default_factory=list)
    reach: int = 0

    def extend(self, ids: list[int]):
        self.ids = self.ids + ids
        self.reach = max(self.reach, len(self.ids))


@dataclass
class Session:
    """One cache and its sequences. ``batched``: it came from a merge, so it has the batch forms. ``done``: its life.
    ``untried``: the operation after which no call came yet. ``name``: what a script calls it."""

    cache: list
    rows: list[Sequence]
    batched: bool = False
    done: list[str] = field(default_factory=list)
    untried: str | None = None
    name: str = ""

    @property
    def lengths(self) -> list[int]:
        return [len(row.ids) for row in self.rows]

    def copied_rows(self) -> list[Sequence]:
        return [copy.copy(row) for row in self.rows]
