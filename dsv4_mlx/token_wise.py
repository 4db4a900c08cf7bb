"""What is computed for each token by itself: fused in a decode step, spread over the cores in a prefill.

A decode step costs what its operations cost to start, microseconds each whatever their size, so mx.compile fuses and
replays them. On the CPU MLX compiles each new kernel with g++ for half a second and keeps it in the folder of temporary
files; where there is no g++, MLX_DISABLE_COMPILE=1 runs everything as it is written.

A prefill on the CPU costs what its products cost, and there MLX computes an operation in one thread. But each stream
has a thread of its own, so parts of the tokens go to a stream each.
"""

import functools
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

import mlx.core as mx

T = TypeVar("T")

# Calls with one shape, after which compiling pays: some 10 s of g++ on a machine that has not seen the shapes. A server
# is there after an answer; a test of small random shapes never is.
REPEATED = 300
LEAST = 2**16  # elements of a part that are worth a stream: 128 tokens of 512
MOST_STREAMS = 8


def one_token(function: Callable) -> Callable:
    """``function``, compiled where its first argument is of one token [B, 1, ...] and that shape came often.

    Arrays that it reads must be its arguments. A decode step has the same shapes for ever, while each length of a
    prompt would be traced and kept for itself.
    """
    compiled = mx.compile(function)
    often = _often()

    @functools.wraps(function)
    def call(x, *rest):
        return (compiled if often(x) else function)(x, *rest)

    return call


def token_wise(method: Callable) -> Callable:
    """A method of a module, compiled for one token and computed in parts for many.

    Its arguments are arrays of tokens [B, S, ...], positions [S], or floats [n] for all tokens; its results,
    [B, S, ...] each, hang on the same token of the arguments alone.
    """

    @functools.wraps(method)
    def call(self, x, *rest):
        if x.shape[1] > 1:
            return _in_parts(functools.partial(method, self), x, *rest)
        # In __dict__, where a module keeps what is no parameter; its parameters are an input like any other.
        known = vars(self).setdefault("_for_one_token", {})
        if method not in known:
            known[method] = _often(), mx.compile(functools.partial(method, self), inputs=self)
        often, compiled = known[method]
        return compiled(x, *rest) if often(x) else method(self, x, *rest)

    return call


def spread(tasks: Iterable[Callable[[], T]]) -> list[T]:
    """The results of all tasks, which are built one after the other and computed side by side where that is quicker."""
    streams, results = _streams(), []
    for number, task in enumerate(tasks):
        with mx.stream(streams[number % len(streams)]):
            results.append(task())
    return results


def _in_parts(function: Callable, x: mx.array, *rest: mx.array) -> mx.array | tuple[mx.array, ...]:
    tokens = x.shape[1]
    count = min(len(_streams()), x.size // LEAST)
    if count < 2:
        return function(x, *rest)
    cuts = [tokens * part // count for part in range(count + 1)]
    spans = [slice(*span) for span in itertools.pairwise(cuts)]
    found = spread(functools.partial(lambda span: function(*(_part(a, span) for a in (x, *rest))), s) for s in spans)
    if isinstance(found[0], tuple):
        return tuple(mx.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return mx.concatenate(found, axis=1)


def _part(array: mx.array, tokens: slice) -> mx.array:
    if array.ndim > 1:
        return array[:, tokens]
    return array[tokens] if mx.issubdtype(array.dtype, mx.integer) else array


def _streams() -> list[mx.Stream]:
    """The current stream, and on the CPU one more for each further core."""
    current = mx.default_stream(mx.default_device())
    return [current, *_further()] if mx.default_device() == mx.cpu else [current]


@functools.cache
def _further() -> list:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [mx.new_thread_local_stream(mx.cpu) for _ in range(min(cores, MOST_STREAMS) - 1)]


def _often() -> Callable[[mx.array], bool]:
    """Asked of each call's first argument: whether it is of one token, and so many came with its shape."""
    seen: Counter[tuple] = Counter()

    def asked(x: mx.array) -> bool:
        if x.shape[1] != 1:
            return False
        seen[kind := (x.shape, x.dtype)] += 1
        return seen[kind] > REPEATED

    return asked
