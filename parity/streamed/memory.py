"""What a run holds: memory that nothing needs any longer goes back before the next large part comes."""

from __future__ import annotations

import _thread
import ctypes
import gc
import math
import resource
import sys
import threading

import mlx.core as mx

from .reference import prefix_of
from .source import Source

GIB = 2**30
BASE = 0.5 * GIB  # Python and the two libraries
STREAMS, LOGITS = 24, 8  # arrays of the size of all streams, of all logits, that a stage holds at once
PARAMETER = 12  # bytes of a parameter that is no routed expert's: in the wide type and in the run's, and on the way
TAKEN = 28  # the same of a conversion: of both folders, and rounded twice
POLL = 0.1  # seconds


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


def needed(source: Source, tokens: int, original: Source | None = None) -> tuple[float, str]:
    """About how many GiB a run takes at most, and the stage that does; from the sizes in the files."""
    config, wide = source.config, 4 if source.raw.get("torch_dtype") != "float32" else 8
    streams = STREAMS * tokens * config.hc_mult * config.hidden_size * wide
    vocabulary = config.vocab_size * config.hidden_size
    found = {
        "embedding": 2 * _bytes(source, "embed."),
        "head": _bytes(source, "head.") + 4 * vocabulary + LOGITS * tokens * config.vocab_size * wide,
    }
    for index in range(config.num_hidden_layers + config.num_nextn_predict_layers):
        prefix = prefix_of(config, index)
        loading = _bytes(source, prefix) + _bytes(source, f"{prefix}ffn.experts.", ".w1.weight")
        shared = [name for name in source.names(prefix) if ".experts." not in name]
        elements = sum(math.prod(source.reading.slots[name].shape) for name in shared)
        computing = elements * (TAKEN if original else PARAMETER)
        found[prefix.rstrip(".").replace("layers.", "layer ").replace("mtp.", "MTP block ")] = max(loading, computing)
    stage = max(found, key=found.get)
    return (BASE + streams + found[stage]) / GIB, stage


def _bytes(source: Source, prefix: str, end: str = "") -> int:
    """What the parameters of these names take in the files."""
    names = [name for name in source.names(prefix) if name.endswith(end)]
    parts = {
        at for name in names for place in source.reading.places[name] for at in source.reading.parts(place).values()
    }
    return sum(source.range(part)[2] for part in parts)


class Ceiling:
    """Ends the run, as Ctrl-C does, as soon as the process has held more than so many GiB; None: never."""

    def __init__(self, most: float | None):
        self.most, self.reached = most, False
        self.over, self.first = threading.Event(), threading.Lock()

    def __enter__(self) -> Ceiling:
        if self.most is not None:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.over.set()

    def check(self) -> None:
        """Raise KeyboardInterrupt where the watching thread has not seen it yet."""
        if self._reached_now():
            raise KeyboardInterrupt

    def _watch(self) -> None:
        while not self.over.wait(POLL):
            if self._reached_now():
                _thread.interrupt_main()
                return

    def _reached_now(self) -> bool:
        """Whether it is beyond the ceiling; true once, for whoever sees it first."""
        with self.first:
            if self.most is None or self.reached or peak() <= self.most:
                return False
            self.reached = True
            return True
