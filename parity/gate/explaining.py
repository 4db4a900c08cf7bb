"""What a hypothesis explains: of which red cells, in words (method, section 7)."""

from __future__ import annotations

from collections.abc import Container

from ..results import Verdict
from .conditions import active, calls_of
from .diagnosis import Diagnoser, Hypothesis
from .probes import SCHEDULES, needed
from .results import Cell, Diagnosis


def explain(diagnoser: Diagnoser, hypothesis: Hypothesis, apart: Container[str] = ()) -> list[Diagnosis]:
    """One entry a defect, one for what nothing explains; cells get to know what explains them. Cells of mechanisms
    that stand `apart` get to know it, and no entry is about them."""
    red = [cell for cell in diagnoser.matrix.cells if cell.verdict is Verdict.DIVERGES]
    for cell in red:
        if (cell.mechanism, cell.schedule) in hypothesis.unexplained or not hypothesis.defects:
            continue
        if (cell.mechanism, cell.schedule) in diagnoser.matrix.logits:
            near = {cell.mechanism} | needed(cell.mechanism)
            shown = [d for d in hypothesis.defects if _shows(diagnoser, d, cell.mechanism, cell.schedule)]
            nearby = [d for d in shown if diagnoser.defect(d).mechanism in near]
            cell.explained_by = nearby or _taken(diagnoser, cell, shown or [*hypothesis.defects], hypothesis.defects)
    red = [cell for cell in red if cell.mechanism not in apart]
    unexplained = [cell for cell in red if not cell.explained_by]
    shown = [name for name in hypothesis.defects if any(name in cell.explained_by for cell in red)]
    entries = [_entry(diagnoser, name, red, bool(unexplained), hypothesis.defects) for name in shown]
    entries = [entry for entry in entries if entry.explained]  # what no red cell takes, shows beyond only
    if unexplained:
        first, *later = dict.fromkeys(cell.mechanism for cell in unexplained)
        follow = f" {len(later)} later ones may only follow from it: {', '.join(later)}." if later else ""
        sentence = (
            f"No known defect, nor a small set of the {len(diagnoser.known)}, gives what this port gives for {first}. "
            f"Start there.{follow}"
        )
        entries.append(Diagnosis([], [], sentence, red=len(unexplained)))
    return entries


def _shows(diagnoser: Diagnoser, name: str, mechanism: str, schedule: str) -> bool:
    """Whether a defect can show in this cell at all."""
    defect, family = diagnoser.defect(name), diagnoser.families[mechanism]
    acts = [active([defect], call) for call in calls_of(family.probe, schedule, family.rows(schedule))]
    shown = {*(defect.schedules or SCHEDULES)}
    shown |= {"batch"} if "decode" in shown else set()  # it decodes too
    return schedule in shown and any(acts)


def _taken(diagnoser: Diagnoser, cell: Cell, names: list[str], whole: tuple[str, ...]) -> list[str]:
    """Of these the ones that the cell takes; all where each can be done without."""
    return [name for name in names if _takes(diagnoser, name, cell, whole)] or names


def _takes(diagnoser: Diagnoser, name: str, cell: Cell, whole: tuple[str, ...]) -> bool:
    """Whether the cell is not reproduced without this defect."""
    if cell.explained_by == [name]:
        return True
    fewer, like = tuple(other for other in whole if other != name), _like(diagnoser, cell, whole)
    needed_in = lambda schedule: not diagnoser.nearly_reproduces(cell.mechanism, schedule, fewer, whole)  # noqa: E731
    defect = diagnoser.defect(name)
    if needed_in(like) or not (defect.condition or defect.schedules):  # what shows everywhere or nowhere
        return needed_in(like)
    return needed_in(cell.schedule)


def _like(diagnoser: Diagnoser, cell: Cell, whole: tuple[str, ...]) -> str:
    """The cheapest schedule to run of those in which the very defects show that show in this cell, and give there what
    the candidate gave: what it needs, this cell needs."""

    def showing(schedule: str) -> tuple:
        shown = frozenset(name for name in whole if _shows(diagnoser, name, cell.mechanism, schedule))
        return shown, frozenset(diagnoser.at_work(cell.mechanism, schedule, whole))

    for schedule in SCHEDULES[: SCHEDULES.index(cell.schedule)]:
        given = (cell.mechanism, schedule) in diagnoser.matrix.logits
        alike = given and showing(schedule) == showing(cell.schedule)
        if alike and diagnoser.reproduces(cell.mechanism, whole, schedules=[schedule]):
            return schedule
    return cell.schedule


def _entry(
    diagnoser: Diagnoser, name: str, red: list[Cell], some_unexplained: bool, whole: tuple[str, ...]
) -> Diagnosis:
    defect = diagnoser.defect(name)
    mine = [cell for cell in red if name in cell.explained_by and _takes(diagnoser, name, cell, whole)]
    others = [] if any(cell.explained_by == [name] for cell in mine) else _others(name, mine)
    start = f"In {len(mine)} of {len(red)} red cells this port" if some_unexplained else "This port"
    together = f", together with {', '.join(others)}" if others else ""
    return Diagnosis(
        [name],
        [defect.title],
        f"{start} behaves exactly like the reference with {defect.title} ({name}){together}; "
        f"it should read: {defect.formula}",
        [defect.formula],
        [] if defect.seen.startswith("plausible") else [defect.seen],
        len(mine),
        len(red),
    )


def _others(name: str, mine: list) -> list[str]:
    """The defects without which this one explains none of its cells: those of its smallest cell."""
    smallest = min((cell.explained_by for cell in mine), key=len, default=[name])
    return [other for other in smallest if other != name]
