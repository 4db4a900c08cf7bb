"""Whether an answer names the line that a defect has changed, which is known where we put it there."""

from __future__ import annotations

from pathlib import Path

from ..gate.defects import Defect
from ..gate.defects.patching import edited
from ..gate.results import Place, WrongLine
from .answers import LIKELY, LINE
from .seen import NEAR
from .sites import changes

RIGHT, WRONG = "right", "wrong"


def changed(defect: Defect, folder: Path) -> dict[str, list[tuple[int, int]]]:
    """First and last lines of what the defect changes in dsv4_mlx, which lies in `folder`, by file; of what it deletes
    the line behind."""
    found = {}
    for file, text in edited([defect], "dsv4_mlx").items():
        lines = [come for _, come in changes((folder / file).read_text(encoding="utf-8"), text)]
        found[file] = [(come.start, max(come.start, come.stop - 1)) for come in lines]
    return found


def verdict(wrong: WrongLine, lines: dict[str, list[tuple[int, int]]]) -> str:
    """right: it calls a statement the line that is changed or at most NEAR lines away; likely: it calls one likely the
    line that is; wrong: it calls another one either. Else the answer's own kind, which claims less."""
    if wrong.kind not in (LINE, LIKELY) or wrong.at is None:
        return wrong.kind
    if not names(wrong.at, lines):
        return WRONG
    return RIGHT if wrong.kind == LINE else LIKELY


def names(place: Place, lines: dict[str, list[tuple[int, int]]]) -> bool:
    """Whether a statement is what is changed, or near it."""
    here = lines.get(Path(place.file).name, [])
    return any(place.line - NEAR <= last and first <= place.end + NEAR for first, last in here)
