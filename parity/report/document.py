"""The JSON document: written whole or not at all, and checked against the published schema."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path

from ..errors import BadInput
from ..results import Report


@cache
def schema() -> dict:
    """The published schema of the document."""
    return json.loads(files(__package__).joinpath("schema.json").read_text(encoding="utf-8"))


def text(report: Report) -> str:
    """The document as text; two runs with one seed differ in `clock` only."""
    return json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n"


def check_target(path: str) -> None:
    """Raise BadInput where the document could not be written, before the work is done rather than after it."""
    folder = Path(path).resolve().parent
    if path != "-" and (Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK)):
        raise BadInput(
            f"{path} cannot be written; give --json a file in a folder that exists and that you may write to."
        )


def write(report: Report, path: str) -> None:
    """Write the document to a file, or to standard output for `-`."""
    if path == "-":
        sys.stdout.write(text(report))
        return
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.resolve().parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text(report))
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise BadInput(f"{path} cannot be written ({error.strerror}).") from error
