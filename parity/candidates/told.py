"""What a candidate's process tells: of an exception there, as one of the problems, and of the lives of its caches."""

from __future__ import annotations

import math
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BadEnvironment
from . import mending
from .adapters.problems import (
    NEEDS_METAL,
    AteMemory,
    CandidateProblem,
    Died,
    LacksName,
    MissingImports,
    NeedsDevice,
    NotOffered,
    Raised,
    WroteOutside,
)
from .pip_names import with_pip_names
from .watching import Bound, Call, Event, Step

GIB = 1 << 30
NO_MEMORY = re.compile(r"bad_alloc|unable to allocate|can't allocate memory|maximum allowed buffer size", re.IGNORECASE)
NO_DEVICE = re.compile(
    r"no metal back-?end|without gpu backend|metal is not available|only supports the gpu", re.IGNORECASE
)
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")


def problem(error: dict[str, object], doing: str, folder: Path, memory: int) -> CandidateProblem:
    """The problem of an answer's error, in a sentence that ends with `doing`. Raises KeyError and the like where the
    answer is none, BadEnvironment where the machine is to blame."""
    # The same seed gives the same report: no addresses, no names of temporary folders.
    message = ADDRESS.sub("0x...", str(error["message"]).replace(str(folder), "its folder"))
    kind = error["kind"]
    place = f" ({error['where']})" if error.get("where") else ""
    if kind == "no room":
        raise BadEnvironment(f"The candidate's logits cannot be written ({message.rstrip('.')}); set TMPDIR.")
    if kind == "exit":
        return Died(f"The candidate called sys.exit({message}) {doing}{place}.")
    if kind == "not offered":
        said = f"The candidate says that it does not offer this: {message.rstrip('.')}."
        return NotOffered(said if error["type"] == "NotImplementedError" else message)
    if kind == "wrote outside":
        return WroteOutside(f"The candidate tried to {message} {doing}, which its process may not.")
    if kind == "missing imports":
        names = [str(name) for name in error["names"]]
        return MissingImports(f"The candidate imports what is not installed: {with_pip_names(names)}.", names)
    if NO_DEVICE.search(message):
        return NeedsDevice(f"The candidate {NEEDS_METAL} ({message.rstrip('.')}).")
    if error["type"] == "MemoryError" or NO_MEMORY.search(message):
        return ate_memory(doing, memory)
    said = f"The candidate raised {error['type']} {doing}{place}: {message.rstrip('.')}."
    lacks = error.get("lacks")
    if lacks and mending.source_of(lacks["name"]):
        return LacksName(said, str(lacks["file"]), lacks["name"])
    return Raised(said)


def ate_memory(doing: str, memory: int) -> AteMemory:
    """The problem of a candidate that took more than `memory` bytes."""
    return AteMemory(f"The candidate took more than the limit of {memory / GIB:g} GiB of memory {doing}.")


@dataclass(frozen=True)
class Lives:
    """How many lives, tokens that were judged in them, the largest error over its limit, what the caches do not offer,
    and of a broken life: the sentence, its sort, whether the port raised; where its logits differ, the tokens up to the
    first that does, and its error over the limits that were handed in; the life as lines of mlx-lm calls."""

    lives: int
    tokens: int
    ratio: float
    gaps: dict[str, str]
    broken: tuple[str, str, bool] | None
    suspect: tuple[list[int], float] | None = None
    script: tuple[str, ...] = ()


@dataclass(frozen=True)
class Watched:
    """What a port's own lines computed in a run, in order of time. masks: places of boolean values. full: there was
    more than could be kept."""

    values: list[np.ndarray]
    steps: list[Step]
    calls: list[Call]
    events: list[Event]
    bound: list[Bound]
    masks: set[int]
    full: bool


def watched(index: dict, flat: np.ndarray) -> Watched:
    """What `watching.Watch.told` wrote. Raises KeyError and the like where it is something else."""
    values, start = [], 0
    if flat.ndim != 1:
        raise ValueError("values that do not lie end to end")
    for shape in index["shapes"]:
        size = math.prod(int(side) for side in shape)
        if not 0 <= size <= len(flat) - start:
            raise ValueError("a value that is not there")
        values.append(flat[start : start + size].reshape([int(side) for side in shape]))
        start += size
    among = lambda rows: lambda one: range(len(rows))[int(one)]  # noqa: E731 # an IndexError for a place that is none
    value, step, call = among(values), among(index["steps"]), among(index["calls"])
    numbers = lambda found: [(str(text), float(number)) for text, number in found]  # noqa: E731
    reads = lambda found: [(str(text), value(at)) for text, at in found]  # noqa: E731
    return Watched(
        values,
        [
            Step(
                str(file),
                int(line),
                int(end),
                str(name),
                call(at),
                reads(seen),
                numbers(plain),
                [*map(str, small)],
                [*map(int, under)],
                *([*map(str, names)] for names in (*more, [], [], [])[:3]),  # older recordings lack these
                [(int(at), [(str(text), str(one)) for text, one in rest]) for at, rest in (more[3:] or [[]])[0]],
            )
            for file, line, end, name, at, seen, plain, small, under, *more in index["steps"]
        ],
        [Call([*map(value, seen)], [*map(float, plain)]) for seen, plain in index["calls"]],
        [Event(step(at), str(name), value(given), [*map(step, outer)]) for at, name, given, outer in index["events"]],
        [Bound(step(at), str(name), float(number), *map(bool, more[:1])) for at, name, number, *more in index["bound"]],
        {value(one) for one in index["masks"]},
        bool(index["full"]),
    )


def last_words(code: int | None) -> str:
    """How a process ended that closed its pipe, by its exit code."""
    if code is None:
        return "closed the pipe of its answers"
    if code >= 0:
        return f"ended its process with os._exit({code}) or the like"
    name = signal.Signals(-code).name
    words = {"SIGSEGV": "segfaulted", "SIGABRT": "aborted", "SIGKILL": "was killed"}
    return f"{words.get(name, 'was ended by a signal')} (signal {name})"


def lives(answer: dict[str, object]) -> Lives:
    """An answer's numbers. Raises KeyError and the like where it has none."""
    broken, suspect = answer["broken"], answer.get("suspect")  # recordings made before limits were handed in lack it
    return Lives(
        int(answer["lives"]),
        int(answer["tokens"]),
        float(answer["ratio"]),
        {str(name): str(said) for name, said in answer["gaps"].items()},
        (str(broken[0]), str(broken[1]), bool(broken[2])) if broken else None,
        ([int(one) for one in suspect[0]], float(suspect[1])) if suspect else None,
        tuple(str(line) for line in answer.get("script", ())),
    )
