"""Where in a candidate's own code each finding is: its watched run beside the reference's, as it is and with the named
defects."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..candidates.adapters.problems import CandidateProblem
from ..candidates.told import Watched
from ..gate.defects import Defect
from ..gate.diagnosis import patched_logits
from ..gate.families import Family
from ..gate.results import Cell, Diagnosis, Place, WrongLine
from .answers import UNSEEN, Answer, Finding
from .loops import with_joined
from .matching import meanings
from .operations import Operation, recorded
from .sites import sites
from .values import Values

MOST = 3  # findings for which it is looked for: each costs a run of the port and some of the reference
LONGEST = 600  # tokens of a probe: what longer ones compute is too much to keep
AROUND = 2  # lines shown before and after a statement
LARGEST_FILE = 4 << 20  # bytes
SHOWN = 6  # numbers of a value


@dataclasses.dataclass
class Asked:
    """A red cell to look at, for one of the defects that explain it, or for none."""

    cell: Cell
    defect: str | None
    others: tuple[str, ...] = ()

    @property
    def defects(self) -> list[str]:
        return [self.defect] if self.defect else []


def findings(cells: Iterable[Cell], diagnosis: Iterable[Diagnosis], families: dict[str, Family]) -> list[Asked]:
    """The first red cell of each named defect, and the first that nothing explains and that follows from no other."""
    red = [one for one in cells if one.first_token is not None and one.mechanism in families]
    red.sort(key=lambda one: families[one.mechanism].probe.tokens > LONGEST)
    found = []
    for name in dict.fromkeys(name for one in diagnosis for name in one.defects):
        cell = next((one for one in red if name in one.explained_by), None)
        if cell is not None:
            found.append(Asked(cell, name, tuple(one for one in cell.explained_by if one != name)))
    open_ = next((one for one in red if not one.explained_by and not one.because), None)
    return [*found[:MOST], *([Asked(open_, None)] if open_ else [])]


class Locator:
    """Looks for lines of one candidate. `engine` runs it with its lines watched; `known` are the defects by name."""

    def __init__(self, engine, families: dict[str, Family], known: dict[str, Defect], folder: Path):
        self.engine, self.families, self.known, self.folder = engine, families, known, folder
        self.runs: dict[tuple, tuple[Values, list[Operation]]] = {}

    def locate(self, asked: Asked) -> WrongLine:
        """The answer for one finding; never raises for what the candidate does."""
        cell = asked.cell
        wrong = WrongLine(UNSEEN, cell.mechanism, cell.schedule, "", asked.defects)
        if self.families[cell.mechanism].probe.tokens > LONGEST:
            wrong.sentence = (
                f"only probes of more than {LONGEST} tokens show it, and what they compute is too much to keep"
            )
            return wrong
        try:
            watched = self._watched(cell)
        except CandidateProblem as problem:
            wrong.sentence = f"it did not run with its lines watched: {problem}"
            return wrong
        right, operations = self._reference(cell, asked.others)
        defective = self._reference(cell, (*asked.others, *asked.defects)) if asked.defect else None
        meant = meanings(watched, right, defective and defective[0])
        others = [self.known[name] for name in asked.others]
        places = sites(self.known[asked.defect], others) if asked.defect else []
        said = texts(self.families[cell.mechanism].probe.config)
        answer = Finding(watched, meant, operations, defective and defective[1], places, said).answer()
        self._tell(wrong, answer, watched, operations)
        if watched.full and answer.kind == UNSEEN:
            wrong.sentence += "; its lines computed more than is kept"
        return wrong

    def _tell(self, wrong: WrongLine, answer: Answer, watched: Watched, operations: list[Operation]) -> None:
        wrong.kind, wrong.sentence, wrong.inputs_right = answer.kind, answer.sentence, answer.inputs_right
        place = lambda step: None if step is None else placed(*dataclasses.astuple(watched.steps[step])[:4])  # noqa: E731
        wrong.at, wrong.after = place(answer.at), place(answer.after)
        if answer.event is None:
            return
        event = watched.events[answer.event]
        if event.step == answer.at and event.name != "return":
            wrong.gives = event.name
        instead = next((one for one in operations if one.key == answer.instead), None)
        if instead is not None and instead.value.size == watched.values[event.value].size:
            wrong.expected = some(instead.value)
            wrong.got = some(np.sort(watched.values[event.value], axis=None))

    def _watched(self, cell: Cell) -> Watched:
        family = self.families[cell.mechanism]
        calls = calls_until(family, cell)
        ids = family.ids[: family.rows(cell.schedule), : sum(calls) + family.probe.mtp]
        self.folder.mkdir(parents=True, exist_ok=True)
        written = family.write(self.folder / f"lines-{len([*self.folder.iterdir()])}")
        run = self.engine.mtp if family.probe.mtp else self.engine.run
        cached = cell.schedule != "oneshot"
        return self.engine.lines(written, run, cell.schedule, ids.numpy().astype(np.int32), calls, cached)

    def _reference(self, cell: Cell, defects: Iterable[str]) -> tuple[Values, list[Operation]]:
        """What the reference computes with these defects, and how."""
        family, calls = self.families[cell.mechanism], calls_until(self.families[cell.mechanism], cell)
        key = cell.mechanism, calls, family.rows(cell.schedule), frozenset(defects)
        if key not in self.runs:
            patches = [self.known[name] for name in defects]
            ids = family.ids[:, : sum(calls) + family.probe.mtp]
            other = (ids + 1) % family.probe.config["vocab_size"]

            def run(ids: Tensor, dtype: str) -> list[Operation]:
                fed = dataclasses.replace(family, ids=ids)
                return with_joined(recorded(lambda: patched_logits(fed, cell.schedule, patches, dtype, calls)))

            dtype = family.probe.dtype
            exact = run(ids, "float64")
            weights = [*family.tensors.values(), *stacked(family.tensors)]
            found = Values.of(exact, run(ids, dtype), run(other, "float64"), dtype, weights)
            self.runs[key] = found, exact
        return self.runs[key]


def texts(config: object) -> set[str]:
    """What a config says in words, at any depth."""
    if isinstance(config, str):
        return {config}
    inside = config.values() if isinstance(config, dict) else config if isinstance(config, (list, tuple)) else ()
    return {text for one in inside for text in texts(one)}


def calls_until(family: Family, cell: Cell) -> tuple[int, ...]:
    """The calls of the cell's schedule up to that in which its logits first deviate."""
    calls, kept = family.probe.calls_of(cell.schedule), []
    for tokens in calls:
        kept.append(tokens)
        if sum(kept) > (cell.first_token or 0):
            break
    return tuple(kept)


def stacked(tensors: dict[str, Tensor]) -> list[Tensor]:
    """The weights of all experts of a layer in one array, as ports hold them."""
    found: dict[str, list[Tensor]] = {}
    for name, one in tensors.items():
        if ".experts." in name:
            found.setdefault(re.sub(r"\.experts\.\d+\.", ".experts.", name), []).append(one)
    return [torch.stack(ones) for ones in found.values()]


def placed(file: str, line: int, end: int, function: str) -> Place:
    """A statement with its text, and some lines around it."""
    place = Place(file, line, end, function)
    try:
        path = Path(file)
        if path.suffix == ".py" and path.stat().st_size <= LARGEST_FILE:
            lines = path.read_text(encoding="utf-8").splitlines()
            place.first = max(1, line - AROUND)
            place.text = lines[place.first - 1 : end + AROUND]
    except (OSError, ValueError):  # the place itself stands
        place.first, place.text = line, []
    return place


def some(value: np.ndarray) -> list[float]:
    """A few of the numbers of a sorted value, from the smallest to the largest."""
    at = np.linspace(0, len(value) - 1, min(SHOWN, len(value))).round().astype(int)
    return [float(one) for one in value[at]]
