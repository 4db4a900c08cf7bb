"""Whether the whole model of a checkpoint fits, by the sizes in its files, before anything of it is loaded."""

from __future__ import annotations

import math
import os

from ..errors import BadInput
from ..streamed.memory import BASE, GIB
from ..streamed.source import Source

ELEMENT = {"float32": 4, "bfloat16": 2}


def needed(source: Source, dtype: str) -> float:
    """About how many GiB the model takes in MLX: packed weights as they are stored, all others in the type."""
    total = 0
    for name in source.names(""):
        places = source.reading.places[name]
        parts = {at for place in places for at in source.reading.parts(place).values()}
        stored, elements = sum(source.range(part)[2] for part in parts), math.prod(source.reading.slots[name].shape)
        total += stored if stored < ELEMENT["bfloat16"] * elements else ELEMENT[dtype] * elements
    return (BASE + total) / GIB


def machine() -> float:
    """This machine's memory in GiB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB


def refuse_unless_it_fits(source: Source, dtype: str, most: float | None, option: str) -> None:
    """Raise BadInput for a model that is larger than `most` GiB, or where none are given than the machine; `option`
    is what asks for it whole."""
    need, room = needed(source, dtype), most or machine()
    if need > room:
        than = f"above --memory {most:g}" if most else f"more than this machine's {room:.1f} GiB"
        raise BadInput(
            f"{option} needs the whole model of {source.folder}, about {need:.1f} GiB, which is {than}; "
            f"without {option} it is judged block by block."
        )
