"""Watching a port's own lines while it runs: every array that a line binds or a function returns, and what it read."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from .arrays import SMALLEST, arguments, copied, is_array, is_value, numbers, numpy_of, parts, plain_ones, size_of
from .statements import binders, binding, by_line, changed, conditions, decisive, header_end, passed, read

KEPT = ("steps", "calls", "events", "bound")
MOST = 1 << 26  # numbers in all
LIBRARIES = ("mlx", "mlx_lm", "mlx_vlm", "transformers", "torch", "numpy")


@dataclass
class Step:
    """A statement that ran, first and last line, in one call of its function. `reads`: expressions in it that are
    values, each with its place; `numbers`: those that are plain numbers, each with what it is; `small`: arrays that are
    too small for values; `under`: the lines of the conditions that it depends on; `absent`: what is None of what it
    reads from objects; `skipped`: what it reads that a condition or a loop before it binds, but did not in this
    call; `flags`: what it reads that is None or a truth value; `tested`: line by line, of the conditions that it hangs
    on or by which something was skipped, what they read that is no array; a text with what it says."""

    file: str
    line: int
    end: int
    function: str
    call: int
    reads: list[tuple[str, int]]
    numbers: list[tuple[str, float]]
    small: list[str]
    under: list[int]
    absent: list[str]
    skipped: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    tested: list[tuple[int, list[tuple[str, str]]]] = field(default_factory=list)


@dataclass
class Call:
    """What a call of a function was given: places of values, numbers."""

    values: list[int]
    numbers: list[float]


@dataclass
class Bound:
    """A plain number that a step bound to a name or an attribute. alone: whether it is an attribute that no other
    statement of the class binds."""

    step: int
    name: str
    number: float
    alone: bool = False


@dataclass
class Event:
    """A value that a step gave, by its place, and the steps that it was called from, the nearest first."""

    step: int
    name: str
    value: int
    callers: list[int]


class Watch:
    """What was met in calls inside `watching`; `full` once it was too much."""

    def __init__(self, own: Callable[[str], bool], source: Callable[[str], str] | None = None):
        self.own, self.source = cache(own), source or (lambda file: Path(file).read_text(encoding="utf-8"))
        self.statements: dict[str, dict[int, ast.stmt]] = {}
        self.conditions: dict[ast.stmt, list[int]] = {}
        self.passed: dict[ast.stmt, list[ast.stmt]] = {}
        self.binders: dict[str, list[tuple[set[ast.stmt], dict[str, int]]]] = {}
        self.steps: list[Step] = []
        self.calls: list[Call] = []
        self.events: list[Event] = []
        self.bound: list[Bound] = []
        self.values: list = []  # as they were when they were met
        self.alive: list = []  # so that no other value takes their identity
        self.places: dict[int, int] = {}
        self.kept, self.full = 0, False
        self.stack: list[_Frame] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every call inside, of this thread."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def place(self, value, written: bool = False) -> int | None:
        """Where a value is kept, anew if it was written into; None for what is none."""
        if id(value) in self.places and not written:
            return self.places[id(value)]
        if not is_value(value):
            return None
        self.kept += size_of(value)
        if self.kept > MOST:
            self.full = True
            return None
        self.places[id(value)] = len(self.values)
        self.values.append(copied(value))
        self.alive.append(value)
        return self.places[id(value)]

    def told(self) -> tuple[np.ndarray, dict]:
        """All values, float32, end to end, and an index of them for JSON: shapes, and what `told.watched` reads."""
        arrays = [numpy_of(value) for value in self.values]
        flat = np.concatenate([one.ravel() for one in arrays]) if arrays else np.zeros(0, np.float32)
        rows = {name: [[*vars(one).values()] for one in getattr(self, name)] for name in KEPT}
        masks = [place for place, value in enumerate(self.values) if "bool" in str(getattr(value, "dtype", ""))]
        return flat, {"shapes": [one.shape for one in arrays], "masks": masks, "full": self.full} | rows

    def _enter(self, frame, event, argument):
        if self.full or not self.own(frame.f_code.co_filename):
            return None
        self.stack.append(_Frame(self, frame))
        return self.stack[-1].step

    def statement(self, file: str, line: int) -> ast.stmt | None:
        if file not in self.statements:
            try:
                tree = ast.parse(self.source(file))
                self.statements[file], self.conditions = by_line(tree), self.conditions | conditions(tree)
                self.passed |= passed(tree)
                self.binders[file] = binders(tree)
            except (OSError, SyntaxError, ValueError):
                self.statements[file] = {}
        return self.statements[file].get(line)

    def alone(self, file: str, statement: ast.stmt | None, name: str) -> bool:
        """Whether a statement is the only one that binds an attribute of its class."""
        counts = (found.get(name, 0) for inside, found in self.binders.get(file, ()) if statement in inside)
        return next(counts, 0) == 1


class _Frame:
    """One call of a function: the statement that runs, and the names as they were before it."""

    def __init__(self, watch: Watch, frame):
        self.watch, self.file, self.function = watch, frame.f_code.co_filename, frame.f_code.co_qualname
        self.statement: ast.stmt | None = None
        self.now: int | None = None  # the step of the statement, once something is to be said of it
        self.before: dict[str, int] = {}
        self.reads: list[tuple[str, int]] = []
        self.numbers: list[tuple[str, float]] = []
        self.small: list[str] = []
        self.absent: list[str] = []
        self.flags: list[str] = []
        self.names: set[str] = set()
        self.ran: set[ast.stmt] = set()
        self.tested: dict[int, list[tuple[str, str]]] = {}  # by the lines of the conditions that were met
        self.call = len(watch.calls)
        given = [value for name, value in frame.f_locals.items() if name in arguments(frame.f_code)]
        values = [part for value in given for part in parts(value)]
        places = [place for part in values if (place := watch.place(part)) is not None]
        watch.calls.append(Call(places, [number for value in given for number in numbers(value)]))

    def step(self, frame, event, argument):
        """The trace function of the frame."""
        if event == "line":
            statement = self.watch.statement(self.file, frame.f_lineno)
            if statement is not self.statement or (statement is not None and frame.f_lineno == statement.lineno):
                self._close(frame)
                self._open(frame, statement)
        elif event == "return":
            self._close(frame)
            for value in parts(argument):
                self._keep("return", value)
            self.watch.stack = [one for one in self.watch.stack if one is not self]
        return self.step

    def _open(self, frame, statement: ast.stmt | None):
        self.statement, self.now = statement, None
        self.before = {name: id(value) for name, value in frame.f_locals.items()}
        self.reads, self.numbers, self.small, self.absent, self.flags = [], [], [], [], []
        self.names = set()
        if statement is not None:
            self.ran.add(statement)
        given = [*read(statement, frame)] if statement is not None else []
        if isinstance(statement, (ast.If, ast.For, ast.While, ast.Match)):
            self.tested[statement.lineno] = plain_ones([*read(decisive(statement, frame), frame)])
        for text, value in given:
            self.names.add(text)
            if value is None or isinstance(value, bool):
                self.flags.append(text)
            if value is None and "." in text:
                self.absent.append(text)
            plain = [(text, number) for number in numbers(value)]
            self.numbers += plain
            if not plain and is_array(value) and size_of(value) < SMALLEST:
                self.small.append(text)
            for part in parts(value):
                if (place := self.watch.place(part)) is not None:
                    self.reads.append((text, place))

    def _close(self, frame):
        if self.statement is None:
            return
        for name, value in [*frame.f_locals.items()]:
            if self.before.get(name) != id(value):
                self._keep_all(name, value)
        for text, value in changed(self.statement, frame):
            self._keep_all(text, value, written=True)

    def _keep_all(self, name: str, value, written: bool = False):
        if given := numbers(value):
            alone = self.watch.alone(self.file, self.statement, name)
            self.watch.bound += [Bound(self.told(), name, number, alone) for number in given]
        if is_value(value):
            self._keep(name, value, written)
            return
        for part in parts(value):  # of a collection what is new in it
            if id(part) not in self.watch.places:
                self._keep(name, part)

    def _keep(self, name: str, value, written: bool = False):
        place = self.watch.place(value, written)
        if place is None or self.statement is None:
            return
        stack = self.watch.stack
        outer = stack[: stack.index(self)] if self in stack else []
        callers = [one.told() for one in reversed(outer) if one.statement is not None]
        self.watch.events.append(Event(self.told(), name, place, callers))

    def told(self) -> int:
        """The step of the statement that runs."""
        if self.now is None:
            self.now = len(self.watch.steps)
            span = self.file, self.statement.lineno, header_end(self.statement), self.function
            under, skipped = self.watch.conditions.get(self.statement, []), self._skipped()
            lines = {*under, *(line for by in skipped.values() for line in by)}
            tested = [(line, self.tested[line]) for line in sorted(lines) if line in self.tested]
            given = self.reads, self.numbers, self.small, under, self.absent, sorted(skipped), self.flags, tested
            self.watch.steps.append(Step(*span, self.call, *given))
        return self.now

    def _skipped(self) -> dict[str, list[int]]:
        """What the statement reads and a condition or loop before it binds, but did not; the lines of those."""
        found: dict[str, list[int]] = {}
        for one in self.watch.passed.get(self.statement, []):
            by = binding(one)
            for text in self.names & {*by}:
                if self.ran.isdisjoint(by[text]) and not self._bound_since(one.end_lineno, text):
                    found.setdefault(text, []).append(one.lineno)
        return found

    def _bound_since(self, line: int, name: str) -> bool:
        """Whether a statement that has run binds a name below a line, to something else than what it makes of it."""
        below = (one for one in self.ran if isinstance(one, ast.Assign) and one.lineno > line)
        anew = (one for one in below if one is not self.statement and name in binding(one))
        return any(name not in map(ast.unparse, ast.walk(one.value)) for one in anew)


def own_files(file: str) -> Callable[[str], bool]:
    """Which files are a port's own, by the file of its model class: its package's; of a library's model those of its
    folder, of a file alone those beside it."""
    path = Path(file).resolve()
    top = path.parent
    while (top.parent / "__init__.py").exists():
        top = top.parent
    if not (path.parent / "__init__.py").exists():
        return lambda name: Path(name).resolve().parent == path.parent
    if top.name not in LIBRARIES:
        return lambda name: top in Path(name).resolve().parents
    if path.parent.name in ("models", top.name):  # where all models of the library lie
        return lambda name: Path(name).resolve() == path
    return lambda name: path.parent in Path(name).resolve().parents
