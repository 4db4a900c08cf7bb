"""Files that a candidate wrote: nothing in them, nor in their names, is taken for granted."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import numpy as np


def array(path: Path, folder: Path, most: int) -> np.ndarray:
    """A float32 array of at most so many bytes. Raises ValueError."""
    try:
        found = np.load(io.BytesIO(content(path, folder, most)), allow_pickle=False)
    except (MemoryError, EOFError, OverflowError) as error:
        raise ValueError("not an array") from error
    if not isinstance(found, np.ndarray) or found.dtype != np.float32:
        raise ValueError("not float32")
    return found


def content(path: Path, folder: Path, most: int) -> bytes:
    """Of a plain file in the candidate's folder: no link, no pipe, not larger than asked for. Raises ValueError."""
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError("outside the candidate's folder")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size > most:
                raise ValueError("no plain file of the size that was asked for")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(most)
        finally:
            os.close(descriptor)
    except (OSError, RuntimeError) as error:  # no file, a folder, links in a circle
        raise ValueError("no file") from error
