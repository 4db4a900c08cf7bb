"""A tensor as its file's header describes it."""

from pathlib import Path
from typing import NamedTuple


class Stored(NamedTuple):
    """A tensor's type, by its safetensors name ("BF16", "F8_E4M3", "U32"), its shape, and the file where it lies."""

    dtype: str
    shape: tuple[int, ...]
    path: Path | None = None
