"""What a port's caches offer of mlx-lm's contract, tried once on a short past, and what they hold on to."""

from __future__ import annotations

import copy
import re
import tempfile
from pathlib import Path

import mlx.core as mx
from mlx_lm.models import cache as mlx_lm_cache

from .port import Port

# What a port's caches may offer, the methods that it takes, and whether they are those of merged caches.
OFFERS = {
    "branch": ("copies", (), False),
    "trim": ("trimming", ("is_trimmable", "trim"), False),
    "save_and_restore": ("saving and restoring by mlx-lm's save_prompt_cache", ("state",), False),
    "weigh": ("weighing by nbytes", ("nbytes",), False),
    "merge": ("batches", ("merge",), False),
    "extract": ("extracting a sequence of a batch", ("extract",), True),
    "filter": ("filtering a batch", ("filter",), True),
    "extend": ("extending a batch", ("extend",), True),
    "ragged": ("padded batches", ("prepare", "finalize"), True),
    "ragged_left": ("batches padded on the left", ("prepare", "finalize"), True),
}


def words_of(name: str) -> str:
    """An operation in words."""
    return OFFERS[name][0]


def gaps(port: Port) -> dict[str, str]:
    """What the port's caches do not offer, by the operation, one sentence each: tried once on a short past."""
    found, merged = {}, None
    cache = port.make_cache()
    mx.eval(port.call(mx.array([[1] * 5]), cache))
    for name, (words, methods, of_batch) in OFFERS.items():
        entries = merged if of_batch else cache
        if entries is None:
            found[name] = f"The port offers no {words}, as it merges no caches."
            continue
        missing = [f"{type(entry).__name__} has no {m}" for entry in entries for m in methods if not hasattr(entry, m)]
        try:
            if missing:
                raise NotImplementedError(missing[0])
            if name == "merge":
                merged = [entry.merge([entry, copy.deepcopy(entry)]) for entry in cache]
            elif name in TRIALS:
                TRIALS[name](cache)
        except Exception as error:
            said = " ".join(str(error).split())[:200].rstrip(".")
            kind = "" if isinstance(error, NotImplementedError) else f"{type(error).__name__}: "
            found[name] = f"The port offers no {words}: {kind}{said}."
    return found


def _try_trim(cache: list):
    if not mlx_lm_cache.can_trim_prompt_cache(cache):
        raise NotImplementedError("its caches are not trimmable after five tokens")
    trimmed = copy.deepcopy(cache)
    for tokens in (0, 1):
        mlx_lm_cache.trim_prompt_cache(trimmed, tokens)
        copy.deepcopy(trimmed)  # as mlx-lm's server keeps what it has trimmed


def _try_saving(cache: list):
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "cache.safetensors")
        mlx_lm_cache.save_prompt_cache(path, cache)
        mlx_lm_cache.load_prompt_cache(path)


TRIALS = {"branch": copy.deepcopy, "trim": _try_trim, "save_and_restore": _try_saving}


# --- what a long generation piles up ---------------------------------------------------------------------------

PENDING = 100  # operations of one cache; those of a few tokens may be pending, those of all steps may not


def pending(port: Port, prompt: int, tokens: int) -> str:
    """Half a sentence where a cache hangs on what nobody computes while only the logits are evaluated (D094)."""
    cache = port.make_cache()
    mx.eval(port.call(mx.array([[index % port.vocabulary for index in range(prompt)]]), cache), _arrays(cache))
    for step in range(tokens):
        mx.eval(port.call(mx.array([[step % port.vocabulary]]), cache))
    counts = [_operations(_arrays(entry)) for entry in cache]
    worst = max(range(len(counts)), key=counts.__getitem__)
    if counts[worst] <= PENDING:
        return ""
    return f"entry {worst} of the cache hangs on {counts[worst]} operations that nothing computes, more a token"


def _arrays(value, seen: set[int] | None = None) -> list[mx.array]:
    """The arrays that an object holds, whatever its class."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, mx.array):
        return [value]
    parts = [*value.values()] if isinstance(value, dict) else [*value] if isinstance(value, (list, tuple)) else []
    parts += [part for part in getattr(value, "__dict__", {}).values() if not isinstance(part, type)]
    return [array for part in parts for array in _arrays(part, seen)]


def _operations(arrays: list[mx.array]) -> int:
    """The operations that are still to be computed for these arrays."""
    if not arrays:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.dot")
        mx.export_to_dot(str(path), *arrays)
        return len(re.findall(r"shape=rectangle", path.read_text()))
