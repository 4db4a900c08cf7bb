"""The JSON documents and their published schemas; every file is written whole or not at all."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path

from ..errors import NO_ROOM, BadEnvironment, BadInput
from ..gate.results import GateReport
from ..results import Report
from ..streamed.results import CheckpointReport

SCHEMAS = {
    "dsv4-parity/report/1": "schema.json",
    "dsv4-parity/gate/1": "gate_schema.json",
    "dsv4-parity/checkpoint/1": "checkpoint_schema.json",
    "dsv4-parity/device/1": "device_schema.json",
}


@cache
def schema(name: str = "dsv4-parity/report/1") -> dict:
    """The published schema of that name, which a document carries in its field `schema`."""
    return json.loads(files(__package__).joinpath(SCHEMAS[name]).read_text(encoding="utf-8"))


def text(report: Report | GateReport | CheckpointReport) -> str:
    """The document as text; two runs with one seed differ in `clock` only."""
    return text_of(report.to_dict())


def text_of(document: dict) -> str:
    """A document, or another JSON rendering of it, as text."""
    content = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    # A candidate's text may hold a lone surrogate, which UTF-8 cannot write; as \ud800 it is JSON.
    return content.encode("utf-8", "backslashreplace").decode("utf-8")


def read(path: str) -> object:
    """What a JSON file holds. Raises BadInput where it is none."""
    try:
        if not os.path.isfile(path):  # a pipe would be waited for
            raise BadInput(f"{path} cannot be read (it is no file); give a report that --json wrote.")
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); give a report that --json wrote.") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} holds no JSON; give a report that --json wrote.") from error


def check_target(path: str, option: str = "--json") -> None:
    """Raise BadInput where the document could not be written, before the work is done rather than after it."""
    if path != "-" and (not path or os.path.isdir(path) or not may_be_made(Path(path))):
        raise BadInput(
            f"{path} cannot be written; give {option} a file in a folder that exists and that you may write to."
        )


def may_be_made(path: Path) -> bool:
    """Whether a file or folder of this name could be made: its folder is there, and nothing is wrong with the name."""
    try:
        if path.is_symlink() and not path.exists():
            path = path.resolve(strict=False)
        os.lstat(path.parent / path.name)
    except FileNotFoundError:
        pass  # not there yet, but a name that might be
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, links in a circle
        return False
    folder = os.path.realpath(path.parent)
    return os.path.isdir(folder) and os.access(folder, os.W_OK)


def write(report: Report | GateReport | CheckpointReport, path: str) -> None:
    """Write the document to a file, or to standard output for `-`."""
    write_text(text(report), path)


def write_text(content: str, path: str) -> None:
    """Write any rendering to a file, whole or not at all, or to standard output for `-`."""
    if path == "-":
        sys.stdout.write(content)
        return
    target = Path(path)
    temporary = None
    try:
        if target.exists() and not target.is_file():  # a pipe, a device
            target.write_text(content, encoding="utf-8")
            return
        handle, temporary = tempfile.mkstemp(dir=target.resolve().parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except (OSError, ValueError, RuntimeError) as error:  # the latter of names that are none
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, BrokenPipeError):
            return
        kind = BadEnvironment if getattr(error, "errno", None) in NO_ROOM else BadInput
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise kind(f"{path} cannot be written ({reason}).") from error
