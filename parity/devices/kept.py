"""Figures that are kept between runs, one file a device in the user's cache folder.

A file counts only if it is of this very device, driver, system, MLX and measuring code; anything else in its place is
as if there were none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from functools import cache
from pathlib import Path

from .results import Calibration, Device

FOLDER = "dsv4-parity"


def read(device: Device) -> Calibration | None:
    """What was measured on it, None where nothing usable is kept."""
    try:
        path = _path(device)
        if not path.is_file():  # a pipe would be waited for
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["code"] != code_version():
            return None
        calibration = Calibration.from_dict(found["calibration"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, RecursionError):
        return None
    return calibration if calibration.device == device and calibration.figures else None


def write(calibration: Calibration) -> str | None:
    """Keep it, whole or not at all; where it cannot be kept, why, which harms nothing but the next run's time."""
    content = json.dumps({"code": code_version(), "calibration": calibration.to_dict()}, indent=1, allow_nan=False)
    temporary = None
    try:
        path = _path(calibration.device)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content + "\n")
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # the latter where nobody knows the home folder
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return getattr(error, "strerror", None) or str(error).rstrip(".")
    return None


def folder() -> Path:
    """Raises RuntimeError where there is neither a cache folder nor a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of XDG: a relative path is to be ignored.
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / FOLDER / "devices"


@cache
def code_version() -> str:
    """A digest of what measures: whoever changes an input or a truth need not remember a number."""
    here = Path(__file__).parent
    files = [here / "measuring.py", here / "results.py", *here.glob("primitives/*.py")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _path(device: Device) -> Path:
    digest = hashlib.sha256(repr(device).encode()).hexdigest()[:16]
    return folder() / f"{device.kind}-{digest}.json"
