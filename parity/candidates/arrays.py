"""Which values of a run are kept: arrays and lists of numbers, of a size that can be compared."""

from __future__ import annotations

import inspect
from types import BuiltinFunctionType, FunctionType, ModuleType

import numpy as np

SMALLEST, LARGEST = 8, 200_000  # numbers of a value: fewer prove nothing, more are not compared


def parts(value) -> list:
    """A value, or those in a list, a tuple, a dict or an object of plain data, one level down."""
    if is_value(value):
        return [value]
    if isinstance(value, (list, tuple)):
        return [one for one in value if is_value(one)]
    if type(value) is dict or hasattr(type(value), "__dataclass_fields__"):
        inside = value if type(value) is dict else getattr(value, "__dict__", {})
        return [one for one in inside.values() if is_value(one)]
    return []


def is_value(value) -> bool:
    """Whether it is an array, or a list of numbers, of a size that can be compared."""
    if isinstance(value, (list, tuple)):
        return SMALLEST <= len(value) < LARGEST and all(map(is_number, value))
    return is_array(value) and SMALLEST <= size_of(value) < LARGEST


def is_array(value) -> bool:
    """Whether it is an array of MLX, torch or NumPy that holds numbers: no class of them, nothing on torch's meta."""
    if isinstance(value, type) or type(value).__module__.partition(".")[0] not in ("mlx", "torch", "numpy"):
        return False
    return hasattr(value, "shape") and not getattr(value, "is_meta", False)


def numbers(value) -> list[float]:
    """A plain number, or those of a sequence, or an array of whole numbers, that is too short for a value."""
    if is_array(value) and size_of(value) < SMALLEST and "int" in str(value.dtype):
        value = numpy_of(value).ravel().tolist()
    given = value if isinstance(value, (list, tuple)) else [value]
    return [float(one) for one in given if is_number(one)] if len(given) < SMALLEST else []


def plain_ones(given: list[tuple[str, object]]) -> list[tuple[str, str]]:
    """Of names and attributes with what they are, those that are no arrays, modules, functions or classes, nor only
    lead to another one of them; a text with what it says."""
    leads = {text.rpartition(".")[0] for text, _ in given}
    kinds = (ModuleType, FunctionType, BuiltinFunctionType, type)
    code = lambda one: isinstance(one, kinds) or type(one).__module__ == "nanobind"  # noqa: E731 # MLX's functions
    rest = [(text, one) for text, one in given if text not in leads and not is_array(one) and not code(one)]
    return [(text, one if isinstance(one, str) else "") for text, one in rest]


def is_number(value) -> bool:
    """Whether it is a plain number, and finite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def arguments(code) -> set[str]:
    """The names of what a function is given."""
    flags = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return {*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + flags]}


def numpy_of(value) -> np.ndarray:
    """A value as float32."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return np.asarray(value, np.float32)
    if type(value).__module__.partition(".")[0] == "torch":
        return value.detach().cpu().float().numpy()
    import mlx.core as mx

    return np.array(value.astype(mx.float32))


def copied(value):
    """What stays as it is when the value is written into."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return np.array(value)
    if type(value).__module__.partition(".")[0] == "torch":
        return value.detach().clone()
    import mlx.core as mx

    return mx.array(value)


def size_of(value) -> int:
    """How many numbers it holds."""
    if isinstance(value, (list, tuple)):
        return len(value)
    size = 1
    for side in value.shape:
        size *= int(side)
    return size
