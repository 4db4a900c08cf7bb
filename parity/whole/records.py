"""Recorded continuations: a folder with one JSON file a prompt (docs/full_model.md)."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BadInput
from ..streamed.stages import DTYPES
from ..streamed.tokens import MOST

SCHEMA = "dsv4-parity/continuation/1"


@dataclass(frozen=True)
class Record:
    """A prompt, and what it was continued with; of a prompt alone, `ids` are empty. margins: logit of the best token
    less that of the second at each step, where they were recorded."""

    name: str
    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    prompt: str = ""
    margins: list[float] = field(default_factory=list)
    dtype: str | None = None


def read(folder: Path, vocabulary: int) -> list[Record]:
    """The records of a folder, by name. Raises BadInput."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise BadInput(f"--generate {folder} cannot be read ({error.strerror}).") from error
    if not paths:
        raise BadInput(f"--generate {folder} holds no recorded continuation; --record DIR writes some.")
    return [_read(path, vocabulary) for path in paths]


def _read(path: Path, vocabulary: int) -> Record:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is no JSON"
        raise BadInput(f"{path} cannot be read as a recorded continuation ({reason}).") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise BadInput(f"{path} is no recorded continuation: its schema is not {SCHEMA}.")
    prompt, ids = (_ids(found.get(key), key, path, vocabulary) for key in ("prompt_ids", "ids"))
    margins, text, dtype = found.get("margins", []), found.get("prompt", ""), found.get("dtype")
    if not isinstance(margins, list) or (margins and len(margins) != len(ids)) or not all(map(_is_margin, margins)):
        raise BadInput(f"{path}: margins are not {len(ids)} numbers of at least 0, one for each of its ids.")
    if not isinstance(text, str) or not (dtype is None or dtype in DTYPES):
        raise BadInput(f"{path}: prompt is not a text, or dtype none of {', '.join(DTYPES)}.")
    return Record(path.stem, prompt, ids, text, margins, dtype)


def _ids(found: object, key: str, path: Path, vocabulary: int) -> list[int]:
    whole = isinstance(found, list) and all(type(one) is int for one in found)
    if not whole or not 0 < len(found) <= MOST:
        raise BadInput(f"{path}: {key} is not a list of 1 to {MOST} token ids.")
    for one in found:
        if not 0 <= one < vocabulary:
            raise BadInput(f"{path}: {key} holds id {one}, outside the checkpoint's vocabulary of {vocabulary}.")
    return found


def _is_margin(one: object) -> bool:
    return type(one) in (int, float) and math.isfinite(one) and one >= 0


def check_target(folder: Path) -> None:
    """Raise BadInput where no records can be written."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise BadInput(f"--record {folder} exists already; name a new folder.")
    if not folder.absolute().parent.is_dir():
        raise BadInput(f"--record {folder} cannot be written: there is no folder {folder.absolute().parent}.")


def write(folder: Path, continuations: Iterable[dict], dtype: str) -> None:
    """A file for each continuation of a report, all of them or none. Raises BadInput."""
    made = None
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.absolute().parent))
        made.chmod(0o755)
        for one in continuations:
            kept = {key: one[key] for key in ("prompt", "prompt_ids", "ids", "margins")}
            text = json.dumps({"schema": SCHEMA, "dtype": dtype} | kept, ensure_ascii=False)
            (made / f"{one['name']}.json").write_text(text + "\n", encoding="utf-8")
        os.replace(made, folder)
    except OSError as error:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        raise BadInput(f"--record {folder} cannot be written ({error.strerror}).") from error
