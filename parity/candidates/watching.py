"""Watching a port's own lines while it runs: every array that a line binds or a function returns, and what it read."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from .statements import binders, binding, by_line, changed, conditions, header_end, passed, read

SMALLEST, LARGEST = 8, 200_000  # numbers of a value: fewer prove nothing, more are not compared
KEPT = ("steps", "calls", "events", "bound")
MOST = 1 << 26  # numbers in all
LIBRARIES = ("mlx", "mlx_lm", "mlx_vlm", "transformers", "torch", "numpy")


@dataclass
class Step:
    """A statement that ran, first and last line, in one call of its function. `reads`: expressions in it that are
    values, each with its place; `numbers`: those that are plain numbers, each with what it is; `small`: arrays that are
    too small for values; `under`: the lines of the conditions that it depends on; `absent`: what is None of what it
    reads from objects; `skipped`: what it reads that a condition or a loop before it binds, but did not in this
    call; `flags`: what it reads that is None or a truth value."""

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
        for text, value in read(statement, frame) if statement is not None else ():
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
            under = self.watch.conditions.get(self.statement, [])
            given = self.reads, self.numbers, self.small, under, self.absent, self._skipped(), self.flags
            self.watch.steps.append(Step(*span, self.call, *given))
        return self.now

    def _skipped(self) -> list[str]:
        before = [binding(one) for one in self.watch.passed.get(self.statement, [])]
        return sorted({text for one in before for text in self.names & {*one} if self.ran.isdisjoint(one[text])})


# --- values ------------------------------------------------------------------------------------------------------


def parts(value) -> list:
    """A value, or those in a list, a tuple, a dict or an object of plain data, one level down."""
    if is_value(value):
        return [value]
    if isinstance(value, (list, tuple)):
        return [one for one in value if is_value(one)]
    if type(value) is dict or hasattr(type(value), "__dataclass_fields__"):
        inside = value if type(value) is dict else getattr(value, "__dict__", {})
        return [one for one in inside.values() if is_value(one)]
    return []


def is_value(value) -> bool:
    """Whether it is an array, or a list of numbers, of a size that can be compared."""
    if isinstance(value, (list, tuple)):
        return SMALLEST <= len(value) < LARGEST and all(map(is_number, value))
    return is_array(value) and SMALLEST <= size_of(value) < LARGEST


def is_array(value) -> bool:
    """Whether it is an array of MLX, torch or NumPy that holds numbers: no class of them, nothing on torch's meta."""
    if isinstance(value, type) or type(value).__module__.partition(".")[0] not in ("mlx", "torch", "numpy"):
        return False
    return hasattr(value, "shape") and not getattr(value, "is_meta", False)


def numbers(value) -> list[float]:
    """A plain number, or those of a sequence, or an array of whole numbers, that is too short for a value."""
    if is_array(value) and size_of(value) < SMALLEST and "int" in str(value.dtype):
        value = numpy_of(value).ravel().tolist()
    given = value if isinstance(value, (list, tuple)) else [value]
    return [float(one) for one in given if is_number(one)] if len(given) < SMALLEST else []


def is_number(value) -> bool:
    """Whether it is a plain number, and finite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def arguments(code) -> set[str]:
    """The names of what a function is given."""
    flags = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return {*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + flags]}


def numpy_of(value) -> np.ndarray:
    """A value as float32."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return np.asarray(value, np.float32)
    if type(value).__module__.partition(".")[0] == "torch":
        return value.detach().cpu().float().numpy()
    import mlx.core as mx

    return np.array(value.astype(mx.float32))


def copied(value):
    """What stays as it is when the value is written into."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return np.array(value)
    if type(value).__module__.partition(".")[0] == "torch":
        return value.detach().clone()
    import mlx.core as mx

    return mx.array(value)


def size_of(value) -> int:
    """How many numbers it holds."""
    if isinstance(value, (list, tuple)):
        return len(value)
    size = 1
    for side in value.shape:
        size *= int(side)
    return size


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
