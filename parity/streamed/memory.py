"""What a run holds: memory that nothing needs any longer goes back before the next large part comes."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys

import mlx.core as mx


def give_back() -> None:
    """Collect what only refers to itself, and empty the caches of MLX and of the C library."""
    gc.collect()
    mx.clear_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what was freed; macOS has no such call
    if trim is not None:
        trim(0)


def peak() -> float:
    """The most memory that the process has held so far, in GiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2 ** (30 if sys.platform == "darwin" else 20)  # bytes there, KiB elsewhere
