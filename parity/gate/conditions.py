"""Conditions under which a defect may act: a port that goes wrong on one of its paths and not on the others (D105)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from .defects import Defect
from .probes import Probe


@dataclass(frozen=True)
class Call:
    """One call of a model: its number, how many tokens it brings to how many sequences, whether a cache is there."""

    index: int
    tokens: int
    rows: int
    cached: bool


@dataclass(frozen=True)
class Condition:
    """`words` complete "this port behaves like the reference with the sink forgotten ..."."""

    name: str
    words: str
    acts: Callable[[Call], bool]


CONDITIONS = {
    one.name: one
    for one in (
        Condition("one", "in calls of one token", lambda call: call.tokens == 1),
        Condition("uncached", "without a cache", lambda call: not call.cached),
        Condition("batch", "in batches", lambda call: call.rows > 1),
        Condition("later", "in calls after the first", lambda call: call.index > 0),
        Condition("chunks", "in later calls of several tokens", lambda call: call.index > 0 and call.tokens > 1),
        Condition("several", "in calls of several tokens", lambda call: call.tokens > 1),
        Condition("first", "in the first call", lambda call: call.index == 0),
        Condition("cached", "with a cache", lambda call: call.cached),
        Condition("alone", "outside batches", lambda call: call.rows == 1),
    )
}


def calls_of(probe: Probe, schedule: str, rows: int) -> list[Call]:
    """The calls of a probe under a schedule, as the candidate gets them."""
    cached = schedule != "oneshot"
    return [Call(i, tokens, rows, cached) for i, tokens in enumerate(probe.calls_of(schedule))]


def under(defect: Defect, condition: Condition) -> Defect:
    """The defect as it acts under the condition only."""
    return replace(
        defect, id=f"{defect.id}@{condition.name}", title=f"{defect.title} {condition.words}", condition=condition.name
    )


def variants(defects: dict[str, Defect]) -> Iterator[Defect]:
    """Every defect that can act under a condition, under each; one that only acts between calls has one already."""
    for defect in defects.values():
        if not defect.between_calls and not defect.outside:
            yield from (under(defect, condition) for condition in CONDITIONS.values())


def active(defects: list[Defect], call: Call) -> list[Defect]:
    """Those that are at work in this call."""
    return [one for one in defects if not one.condition or CONDITIONS[one.condition].acts(call)]


def named(defects: dict[str, Defect], name: str) -> Defect:
    """The defect that an id means, D028-dropped or D028-dropped@one. Raises KeyError."""
    name, _, condition = name.partition("@")
    return under(defects[name], CONDITIONS[condition]) if condition else defects[name]
