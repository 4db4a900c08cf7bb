"""Watching and steering a model from outside: outputs of modules and methods by path, and choices forced by replay.

Works on torch and MLX module trees alike; both packages use the checkpoint's names, so one path fits both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce

import mlx.core as mx

_written = 0  # contexts of as_written


@contextmanager
def as_written() -> Iterator[None]:
    """MLX compiles nothing for a while: what is compiled was traced earlier, and runs past functions that changed."""
    global _written
    _written += 1
    mx.disable_compile()
    try:
        yield
    finally:
        _written -= 1
        if not _written and "MLX_DISABLE_COMPILE" not in os.environ:
            mx.enable_compile()


def find(root, path: str):
    """The module at a dotted path; numbers index lists. `""` is the root itself."""
    step = lambda node, name: node[int(name)] if name.isdigit() else getattr(node, name)  # noqa: E731
    return reduce(step, path.split(".") if path else [], root)


def exists(root, path: str) -> bool:
    """Whether the tree has a module or method at this path."""
    try:
        return find(root, path) is not None
    except (AttributeError, IndexError, KeyError):
        return False


@contextmanager
def wrapped(module, method: str, wrapper: Callable) -> Iterator[None]:
    """Replace `module.method` on this one instance by wrapper(original) for the time of the block; "" is the call
    itself."""
    with as_written(), _wrapped(module, method, wrapper):
        yield


@contextmanager
def _wrapped(module, method: str, wrapper: Callable) -> Iterator[None]:
    if method:
        original = getattr(module, method)
        nested = method in vars(module)
        object.__setattr__(module, method, wrapper(original))
        try:
            yield
        finally:
            object.__delattr__(module, method)
            if nested:
                object.__setattr__(module, method, original)
        return
    kind = type(module)
    name = "forward" if hasattr(kind, "forward") else "__call__"
    original = getattr(kind, name)
    call = wrapper(lambda *args, **kwargs: original(module, *args, **kwargs))
    module.__class__ = type(kind.__name__, (kind,), {name: lambda self, *args, **kwargs: call(*args, **kwargs)})
    try:
        yield
    finally:
        module.__class__ = kind


@contextmanager
def recording(root, points: dict[str, tuple[str, str]]) -> Iterator[dict[str, list]]:
    """Collect outputs: points maps a tap's name to (module path, method or ""); yields name -> one output a call."""
    record: dict[str, list] = {name: [] for name in points}

    def keep(name):
        def wrapper(original):
            def call(*args, **kwargs):
                output = original(*args, **kwargs)
                record[name].append(output)
                return output

            return call

        return wrapper

    with ExitStack() as stack:
        for name, (path, method) in points.items():
            stack.enter_context(wrapped(find(root, path), method, keep(name)))
        yield record


@contextmanager
def forcing(module, choices) -> Iterator[list]:
    """Make `module.select` return `choices` [B, S, k], each call as many tokens as its first argument [B, S, ...] has.

    Yields the list of what the module would have chosen itself, one entry a call. A call that has fewer items to
    choose from takes the first columns, so ids of -1 (none) must come last in a row.
    """
    position, free = 0, []

    def wrapper(original):
        def call(*args):
            nonlocal position
            own = original(*args)
            free.append(own)
            start, position = position, position + args[0].shape[1]
            return choices[:, start:position, : own.shape[-1]]

        return call

    with wrapped(module, "select", wrapper):
        yield free
