"""Putting defects into a loaded package for a while: its functions keep their identity and take over edited code.

Objects that exist already behave like the edited package too, but for what they computed when they were built.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FunctionType

from ...judging.taps import as_written
from . import Defect, DefectError, Edit


class Conflict(ValueError):
    """Two defects edit the same text, so that they cannot be in a package at once."""


@contextmanager
def applied(defects: Iterable[Defect], package: str) -> Iterator[None]:
    """The loaded `package` ("reference_torch" or "dsv4_mlx") with all of these defects. Raises Conflict."""
    swaps = [swap for key in _by_file(defects, package).items() for swap in _swaps(package, *key)]
    kept = [(function, _parts(function)) for function, _ in swaps]
    try:
        for function, parts in swaps:
            _give(function, parts)
        with as_written() if package == "dsv4_mlx" else nullcontext():
            yield
    finally:
        for function, parts in kept:
            _give(function, parts)


def compatible(defects: Iterable[Defect], package: str = "reference_torch") -> bool:
    """Whether `applied` can put them all into the package at once."""
    try:
        edited(defects, package)
    except Conflict:
        return False
    return True


def edited(defects: Iterable[Defect], package: str) -> dict[str, str]:
    """The text of each file of the package that these defects change, by the file's name. Raises Conflict."""
    return {f"{file}.py": _text(package, file, edits) for file, edits in _by_file(defects, package).items()}


def _by_file(defects: Iterable[Defect], package: str) -> dict[str, frozenset[Edit]]:
    """What several defects share counts once."""
    files: dict[str, set[Edit]] = {}
    for defect in defects:
        for edit in defect.edits(package):
            files.setdefault(edit.file, set()).add(edit)
    return {file: frozenset(edits) for file, edits in files.items()}


@functools.cache
def _source(package: str, file: str) -> str:
    return Path(importlib.import_module(f"{package}.{file}").__file__).read_text(encoding="utf-8")


@functools.lru_cache(maxsize=4096)
def _text(package: str, file: str, edits: frozenset[Edit]) -> str:
    """The edited text of a file. Every place is looked up in the file as it is, so that the order cannot matter."""
    source, text, end = _source(package, file), "", 0
    for edit in edits:
        if source.count(edit.old) != 1:
            raise DefectError(f"{package}/{file}.py has {source.count(edit.old)} times {edit.old!r}; quote one place.")
    for edit in sorted(edits, key=lambda edit: source.index(edit.old)):
        start = source.index(edit.old)
        if start < end:
            raise Conflict(f"two defects edit the same text of {package}/{file}.py near {edit.old!r}; apply one.")
        text, end = text + source[end:start] + edit.new, start + len(edit.old)
    return text + source[end:]


@functools.lru_cache(maxsize=4096)
def _swaps(package: str, file: str, edits: frozenset[Edit]) -> list[tuple[FunctionType, tuple]]:
    """Each function of a module that the edits change, and what it takes over."""
    module = importlib.import_module(f"{package}.{file}")
    namespace = dict(vars(module))
    exec(compile(_text(package, file, edits), module.__file__, "exec"), namespace)
    new, found = _functions(namespace, module.__name__), []
    for name, function in _functions(vars(module), module.__name__).items():
        if new[name].__code__ != function.__code__:
            found.append((function, _parts(new[name])))
    return found


def _parts(function: FunctionType) -> tuple:
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _give(function: FunctionType, parts: tuple) -> None:
    function.__code__, function.__defaults__, function.__kwdefaults__ = parts


def _functions(namespace: dict, module: str) -> dict[str, FunctionType]:
    """The functions and methods that a module defines, by their qualified names."""
    own = [value for value in namespace.values() if getattr(value, "__module__", "") == module]
    classes = [value for value in own if isinstance(value, type)]
    found = [value for scope in (own, *(vars(kind).values() for kind in classes)) for value in scope]
    return {name: function for value in found for name, function in _inside(value)}


def _inside(value: object) -> Iterator[tuple[str, FunctionType]]:
    """A function, or those of a property or a class method, under a name of their own."""
    value = inspect.unwrap(value) if callable(value) else value
    parts = {"": value}
    if isinstance(value, property):
        parts = {"": value.fget, ".setter": value.fset}
    elif isinstance(value, classmethod | staticmethod):
        parts = {"": value.__func__}
    elif isinstance(value, functools.cached_property):
        parts = {"": value.func}
    for suffix, function in parts.items():
        if isinstance(function, FunctionType):
            yield function.__qualname__ + suffix, function
