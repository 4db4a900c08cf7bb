"""Memory that nothing needs any longer goes back to the system before the next large part comes."""

from __future__ import annotations

import ctypes
import gc

import mlx.core as mx


def give_back() -> None:
    """Collect what only refers to itself, and empty the caches of MLX and of the C library."""
    gc.collect()
    mx.clear_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what was freed; macOS has no such call
    if trim is not None:
        trim(0)
