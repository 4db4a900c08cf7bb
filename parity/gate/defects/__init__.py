"""The catalogue of defects: known wrong ways to write a mechanism of DeepSeek-V4, one TOML file each in this folder.

A defect is a text patch of `reference_torch` and the same maths as a patch of `dsv4_mlx`. The first lets a diagnosis
reproduce what a port computes (method, section 7), the second measures what the harness sees.
"""

from __future__ import annotations

import functools
import importlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ..probes import SCHEDULES, registry

FOLDER = Path(__file__).parent

PATCHES = {"reference_torch": "reference", "dsv4_mlx": "mlx"}  # package -> key of its patch
TEXTS = ("id", "title", "mechanism", "symptom", "visible", "seen", "formula")
OPTIONAL = ("schedules", "pair", "only", "outside", *PATCHES.values(), *(f"{key}_reason" for key in PATCHES.values()))


class DefectError(ValueError):
    """A file of the catalogue that cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class Edit:
    """In `file`.py of a package, `old` (which occurs exactly once) becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Defect:
    """One defect. `title` completes "this port behaves exactly like the reference with ...".

    mechanism: the first probe that turns red. symptom, visible, seen: what users see, when, and where it was seen.
    formula: the line as it should read. schedules: where it shows, empty for all ("batch": several sequences).
    pair: the pairs of `parity run` of which one must be blamed. only: the type in which it shows, empty for both.
    outside: why no probe of the gate can see it, though `parity run` does. reasons: by package, why there is no patch.
    condition: the name of the condition under which it acts only (parity.gate.conditions), empty for always.
    """

    id: str
    title: str
    mechanism: str
    symptom: str
    visible: str
    seen: str
    formula: str
    schedules: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()
    only: str = ""
    reference: tuple[Edit, ...] = ()
    mlx: tuple[Edit, ...] = ()
    outside: str = ""
    reference_reason: str = ""
    mlx_reason: str = ""
    condition: str = ""

    @property
    def between_calls(self) -> bool:
        """Whether one call never shows it."""
        return bool(self.schedules) and {*self.schedules} <= {"decode", "chunks"}

    def edits(self, package: str) -> tuple[Edit, ...]:
        """The patch of "reference_torch" or of "dsv4_mlx"; empty where a reason stands instead."""
        return getattr(self, PATCHES[package])


@functools.cache
def catalogue() -> dict[str, Defect]:
    """Every defect of this folder by its id, sorted. Raises DefectError."""
    return read_folder(FOLDER)


def read_folder(folder: Path) -> dict[str, Defect]:
    """Every defect of a folder by its id, sorted. Raises DefectError."""
    found: dict[str, Defect] = {}
    for path in sorted(folder.glob("*.toml")):
        defect = read(path)
        if defect.id in found:
            raise DefectError(f"{path.name} has the id {defect.id} of another file; give it one of its own.")
        found[defect.id] = defect
    return dict(sorted(found.items()))


def read_drafts(folder: Path) -> dict[str, Defect]:
    """Defects that somebody drafts, to be looked for beside the catalogue's. Raises DefectError."""
    if not folder.is_dir():
        raise DefectError("there is no such folder; give one with TOML files as the catalogue has them.")
    found = read_folder(folder)
    if not found:
        raise DefectError("the folder holds no TOML file; write one as the catalogue has them.")
    for name, defect in found.items():
        if name in catalogue():
            raise DefectError(f"{name} is an id of the catalogue; give the draft another.")
        for edit in defect.reference:
            file = Path(importlib.import_module("reference_torch").__file__).with_name(f"{edit.file}.py")
            if not file.is_file() or file.read_text(encoding="utf-8").count(edit.old) != 1:
                raise DefectError(f"{name} quotes {edit.old!r}, which is not at one place of {file.name}; correct it.")
    return found


def read(path: Path) -> Defect:
    """The defect in one file. Raises DefectError."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DefectError(f"{path.name} is not TOML ({error}); correct it.") from error
    for key in raw:
        if key not in (*TEXTS, *OPTIONAL):
            raise DefectError(
                f"{path.name} has the unknown key '{key}'; the keys are {', '.join((*TEXTS, *OPTIONAL))}."
            )
    for key in TEXTS:
        if not isinstance(raw.get(key), str) or not raw[key]:
            raise DefectError(f"{path.name} has no text '{key}'; add it.")
    if not path.stem.startswith(raw["id"].lower().replace("-", "_")) or not re.fullmatch(r"[DX]\d{3}[-\w]*", raw["id"]):
        raise DefectError(f"{path.name} has the id {raw['id']!r}; a file's name begins with its id, such as D016.")
    if raw["mechanism"] not in registry():
        raise DefectError(f"{path.name} has the mechanism {raw['mechanism']!r}; choose one of {', '.join(registry())}.")
    if not {*raw.get("schedules", ())} <= {*SCHEDULES}:
        raise DefectError(f"{path.name} has the schedules {raw['schedules']}; choose among {', '.join(SCHEDULES)}.")
    if raw.get("only", "float32") not in ("float32", "bfloat16"):
        raise DefectError(f"{path.name} has only = {raw['only']!r}; choose float32 or bfloat16.")
    for key in PATCHES.values():
        if bool(raw.get(key)) == bool(raw.get(f"{key}_reason")):
            raise DefectError(f"{path.name} needs either [[{key}]] or {key}_reason; give one of them.")
        raw[key] = tuple(_edit(path, entry) for entry in raw.get(key, ()))
    return Defect(**raw | {key: tuple(raw[key]) for key in ("schedules", "pair") if key in raw})


def _edit(path: Path, entry: dict) -> Edit:
    if not isinstance(entry, dict) or {*entry} != {"file", "old", "new"}:
        raise DefectError(f"{path.name} has an edit that is not exactly file, old and new; correct it.")
    return Edit(**entry)
