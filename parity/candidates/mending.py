"""Names of typing and the like that a port's file uses and does not import: which they are, and supplying them.

The process that lacks one is ended and another one started, in which the file begins as if it imported the name: no
code runs twice in one process, no other file sees it, and it is there after the import too.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import typing
from importlib import import_module
from importlib.machinery import SourceFileLoader

SOURCES = {"typing": typing, "collections.abc": collections.abc, "dataclasses": dataclasses}
MOST = 16  # names; each costs the start of a process


def source_of(name: str) -> str | None:
    """The module that a trifle is imported from; None for any other name."""
    return next(
        (source for source, module in SOURCES.items() if name in module.__all__ and hasattr(module, name)), None
    )


def lacking(error: BaseException) -> dict[str, str] | None:
    """The file and the global name of it that ended what it did, where that is a trifle."""
    if not isinstance(error, NameError) or not error.name or source_of(error.name) is None:
        return None
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_globals.get("__file__")
    return {"name": error.name, "file": file} if isinstance(file, str) else None


def supply(names: list[tuple[str, str]]) -> None:
    """From now on each of these files (file, name) starts with its names."""
    original = SourceFileLoader.exec_module

    def exec_module(loader, module):
        for file, name in names:
            if file == loader.path:
                vars(module)[name] = getattr(import_module(source_of(name)), name)
        original(loader, module)

    SourceFileLoader.exec_module = exec_module
