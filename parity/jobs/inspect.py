"""`parity inspect`: what a checkpoint folder is, from its config and headers alone."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dsv4_checkpoints import CheckpointError, Reading, Settings, Stored, read
from dsv4_checkpoints.folder import ELEMENT_BYTES, read_names
from reference_torch.config import Config, ConfigError, read_json

from ..errors import BadInput

NUMBERS = re.compile(r"^(layers|mtp)\.\d+\.|\.\d+(?=\.)")


@dataclass
class Kind:
    """All modules of one kind: how they are stored, how many numbers, how many bytes."""

    name: str
    formats: dict[str, int]
    numbers: int = 0
    bytes: int = 0


@dataclass
class Inspection:
    """What a folder is; ``problems`` are sentences, each of which `load` would stop at."""

    folder: str
    family: str
    title: str
    variant: str
    layers: int
    mtp_blocks: int
    tensors: int
    files: int
    bytes: int
    kinds: list[Kind]
    left_out: dict[str, int]
    ports: tuple[str, ...]
    problems: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, or that of bad input."""
        return BadInput.exit_code if self.problems else 0

    def to_dict(self) -> dict:
        return asdict(self) | {"exit_code": self.exit_code}


def inspect(folder: str | Path) -> Inspection:
    """Look at a checkpoint folder; no tensor is read. Raises BadInput where it is none."""
    folder = Path(folder)
    problems: list[str] = []
    try:
        config = Config.load(folder)
        settings = Settings.of(read_json(folder / "config.json"))
        stored = read_names(folder)
        reading = read(config, stored, settings, lambda error: problems.append(str(error)))
    except (CheckpointError, ConfigError) as error:
        raise BadInput(str(error)) from error
    return Inspection(
        folder=str(folder),
        family=reading.family.id,
        title=reading.family.title,
        variant=_variant(reading, stored),
        layers=config.num_hidden_layers,
        mtp_blocks=reading.mtp_blocks,
        tensors=len(stored),
        files=len({one.path for one in stored.values()}),
        bytes=sum(_bytes(one) for one in stored.values()),
        kinds=_kinds(reading, stored),
        left_out=dict(Counter(reading.left_out.values())),
        ports=reading.family.ports,
        problems=problems,
    )


def read_config(path: Path) -> dict:
    """A checked ``config.json`` as it stands. Raises BadInput."""
    try:
        Config.load(path)
        return read_json(path / "config.json" if path.is_dir() else path)
    except ConfigError as error:
        raise BadInput(str(error)) from error


def _variant(reading: Reading, stored: dict[str, Stored]) -> str:
    """The commonest format of matrices outside of the experts, that of the experts, and what scales are."""
    common = []
    for wanted in (False, True):
        found = Counter(
            str(reading.formats[places[0].name])
            for name, places in reading.places.items()
            if reading.slots[name].is_matrix and (".experts." in name) == wanted
        )
        common += [found.most_common(1)[0][0]] if found else []
    scales = {one.dtype for name, one in stored.items() if name.endswith(".scale") and "hc_" not in name}
    base = ", float32 scales (Base)" if "F32" in scales and any(name == "fp8" for name in common) else ""
    return (
        (common[0] if len(set(common)) == 1 else f"{common[0]}, experts {common[-1]}") + base if common else "nothing"
    )


def _kinds(reading: Reading, stored: dict[str, Stored]) -> list[Kind]:
    kinds: dict[str, Kind] = {}
    formats: dict[str, Counter] = defaultdict(Counter)
    counted: set[str] = set()
    for name, places in reading.places.items():
        if not reading.slots[name].is_matrix:
            continue
        label = NUMBERS.sub(lambda match: "mtp." if match[0].startswith("mtp.") else "", name.removesuffix(".weight"))
        kind = kinds.setdefault(label, Kind(label, {}))
        kind.numbers += math.prod(reading.slots[name].shape)
        for place in places:
            if place.name in counted:
                continue
            counted.add(place.name)
            formats[label][str(reading.formats[place.name])] += 1
            kind.bytes += sum(_bytes(stored[at]) for at in reading.parts(place).values())
    for label, kind in kinds.items():
        kind.formats = dict(formats[label])
    return list(kinds.values())


def _bytes(one: Stored) -> int:
    return math.prod(one.shape) * ELEMENT_BYTES[one.dtype]
