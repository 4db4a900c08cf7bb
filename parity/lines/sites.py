"""Where in the reference's own text a defect stands: the function, and the lines of the statements that it changes."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import reference_torch

from ..gate.defects import Defect
from ..gate.defects.patching import edited

FOLDER = Path(reference_torch.__file__).parent


@dataclass(frozen=True)
class Site:
    """Statements of a function of the reference with a defect: file, qualified name, lines; none where the defect
    leaves a statement out. inserted: whether the defect puts statements in somewhere; they only imitate what ports do,
    so that it says little where they stand."""

    file: str
    function: str
    lines: range
    inserted: bool = False


def sites(defect: Defect, others: Iterable[Defect] = ()) -> list[Site]:
    """Where a defect stands in the reference that has others too."""
    before, after, found = edited(others, "reference_torch"), edited([*others, defect], "reference_torch"), []
    for file, text in after.items():
        old = before.get(file) or (FOLDER / file).read_text(encoding="utf-8")
        if text == old:
            continue
        tree = ast.parse(text)
        for gone, come in changes(old, text):
            lines = _statements(tree, come)
            found.append(Site(file, _function(tree, lines), lines if come else range(0), not gone))
    return found


def changes(before: str, after: str) -> list[tuple[range, range]]:
    """Lines that go and lines that come in their place, numbered from 1; of what only goes, those that come are none
    and start at the line behind."""
    match = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    return [
        (range(start + 1, stop + 1), range(low + 1, high + 1))
        for tag, start, stop, low, high in match.get_opcodes()
        if tag != "equal"
    ]


def _statements(tree: ast.Module, lines: range) -> range:
    """The lines of all simple statements that some lines, or the one at an empty range's start, belong to."""
    first, last = lines.start, max(lines.start, lines.stop - 1)
    met = [
        (one.lineno, one.end_lineno)
        for one in ast.walk(tree)
        if isinstance(one, ast.stmt) and not hasattr(one, "body") and one.lineno <= last and first <= one.end_lineno
    ]
    return range(min([first, *(low for low, _ in met)]), max([last, *(high for _, high in met)]) + 1)


def _function(tree: ast.Module, lines: range) -> str:
    """The qualified name of the innermost function that a line is in; of none the empty one."""
    found = ""

    def walk(node: ast.AST, prefix: str):
        nonlocal found
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                walk(child, prefix)
            elif child.lineno <= lines.start <= child.end_lineno:
                name, inside = prefix + child.name, isinstance(child, ast.FunctionDef)
                found = name if inside else found
                walk(child, name + (".<locals>." if inside else "."))

    walk(tree, "")
    return found
