"""From the tensors that a checkpoint holds to the model's tree: which family, where each matrix lies, what is left."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import CheckpointError, shown
from .families import FAMILIES
from .family import LEAVES, Family, Place, plain
from .formats import FLOAT, FLOATS, Format, detect
from .settings import Settings
from .stored import Stored
from .tree import TOP, Slot, block, slots

MTP = re.compile(r"mtp\.(\d+)\.")
COPY_IN_MTP = re.compile(r"mtp\.\d+\.(emb|embed|embed_tokens|head|lm_head|shared_head)\.")
DRAFTER = "the drafter of Flash-0731, which is no MTP block"
UNCOUNTED = "of an MTP block that the config does not count"
COPY = "a copy of the backbone's"
UNREADABLE = Format("unreadable")
TWIN = "another spelling of the same tensor"


class Twin(NamedTuple):
    """Two spellings of one tensor; whoever reads the values refuses them where they differ."""

    kept: str
    left: str

    def refusal(self) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint holds {self.kept} and {self.left}, two spellings of one tensor, which differ; keep one."
        )


@dataclass
class Reading:
    """What a checkpoint is and how it is read.

    ``places``: published name -> where its rows lie, in order; ``formats``: name of a tensor's module there -> how it
    is stored; ``names``: name without prefix -> name in the files; ``left_out``: name in the files -> why not used.
    """

    family: Family
    mtp_blocks: int
    slots: dict[str, Slot] = field(default_factory=dict)
    places: dict[str, list[Place]] = field(default_factory=dict)
    formats: dict[str, Format] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    twins: list[Twin] = field(default_factory=list)

    def parts(self, place: Place) -> dict[str, str]:
        """Leaf -> name in the files, of the tensors that make a place's values."""
        found = {place.leaf: self.names[place.tensor]}
        if place.leaf == "weight":
            leaves = (leaf for leaf in LEAVES[1:] if f"{place.name}.{leaf}" in self.names)
            found |= {leaf: self.names[f"{place.name}.{leaf}"] for leaf in leaves}
        return found


def _refuse(error: CheckpointError) -> None:
    raise error


def read(
    config,
    stored: Mapping[str, Stored],
    settings: Settings | None = None,
    complain: Callable[[CheckpointError], None] = _refuse,
) -> Reading:
    """How to read these tensors as a model of this config. Raises CheckpointError.

    Strict both ways: each tensor is used or in ``left_out``, each parameter has its place. ``complain`` is told what is
    wrong, and may return to hear the rest.
    """
    names, twins = _plain_names(stored)
    depth, drafter = _mtp_blocks(config, names)
    family = recognised(config, names)
    reading = Reading(family, depth, names=names, twins=twins)
    reading.left_out = {twin.left: TWIN for twin in twins}
    others = [one for one in FAMILIES.values() if one is not family]
    used: set[str] = set()
    for name, slot in slots(config, depth):
        places = next((found for one in (family, *others) if (found := _held(one, name, config, names))), None)
        if places is None:
            place = next(one for one in family.places(name, config.o_groups) if one.tensor not in names)
            complain(
                CheckpointError(
                    f"tensor '{family.written(place.tensor)}' is missing; the config asks for shape {slot.shape}."
                )
            )
            continue
        reading.slots[name], reading.places[name] = slot, places
        for place in places:
            if place.name not in reading.formats:
                parts = {leaf: stored[at] for leaf, at in _parts(place, names, slot)}
                used.update(name_of for _, name_of in _parts(place, names, slot))
                try:
                    reading.formats[place.name] = _checked(family, place, parts, slot, config, len(places))
                except CheckpointError as error:
                    complain(error)
                    reading.formats[place.name] = UNREADABLE
    _account_for(reading, config, stored, used, drafter, complain)
    if settings is not None:
        _check_settings(reading, config, settings, complain)
    return reading


def recognised(config, names: Mapping[str, str]) -> Family:
    """The family that spells most of the names of the whole model and of the first and last layer as they are."""
    packing = "mlx" if any(name.endswith(".scales") for name in names) else "published"
    last = config.num_hidden_layers - 1
    probes = [*TOP, *(name for name, _ in (*block(config, "layers.0", 0), *block(config, f"layers.{last}", last)))]
    probes = [name for name in probes if ".experts." not in name or ".experts.0." in name]
    scores = {}
    for family in FAMILIES.values():
        tensors = [family.places(name, config.o_groups)[0].tensor for name in probes]
        held = [tensor for tensor in tensors if tensor in names]
        whole = sum(names[tensor] == family.written(tensor) for tensor in held)
        scores[family.id] = (len(held), family.packing == packing, whole)
    best = max(FAMILIES.values(), key=lambda family: scores[family.id])
    if not scores[best.id][0]:
        example = min(names.values(), default="nothing")
        raise CheckpointError(
            f"the names of the tensors ({shown(example)}, ...) are of no known family; is this a DeepSeek-V4?"
        )
    return best


def _plain_names(stored: Mapping[str, Stored]) -> tuple[dict[str, str], list[Twin]]:
    names: dict[str, str] = {}
    twins = []
    for name in stored:
        one = plain(name)
        if one in names:
            twins.append(Twin(names[one], name))
        else:
            names[one] = name
    return names, twins


def _mtp_blocks(config, names: Mapping[str, str]) -> tuple[int, bool]:
    """How many MTP blocks to fill, and whether what has their names is a drafter. Conversions often lack them."""
    held = any(name.startswith("mtp.") for name in names)
    drafter = any("markov_head" in name for name in names if name.startswith("mtp."))
    return (0 if drafter or not held else config.num_nextn_predict_layers), drafter


def _held(family: Family, name: str, config, names: Mapping[str, str]) -> list[Place] | None:
    places = family.places(name, config.o_groups)
    return places if all(place.tensor in names for place in places) else None


def _parts(place: Place, names: Mapping[str, str], slot: Slot) -> Iterator[tuple[str, str]]:
    yield place.leaf, names[place.tensor]
    if slot.is_matrix and place.leaf == "weight":
        for leaf in LEAVES[1:]:
            if f"{place.name}.{leaf}" in names:
                yield leaf, names[f"{place.name}.{leaf}"]


def _checked(family: Family, place: Place, parts: dict[str, Stored], slot: Slot, config, divided: int) -> Format:
    """How the module of a place is stored, and that it has the size that the config asks for."""
    values = parts[place.leaf]
    if not slot.is_matrix:
        tensor = family.written(place.tensor)
        if slot.published == "I64" and values.dtype not in ("I64", "I32", "U32", "U64", "I16", "U16"):
            raise CheckpointError(f"tensor '{tensor}' has type {values.dtype}; expert ids must be integers.")
        if slot.published != "I64" and values.dtype not in FLOATS:
            raise CheckpointError(f"tensor '{tensor}' has type {values.dtype}; a floating-point type was expected.")
        if values.shape != slot.shape:
            raise CheckpointError(f"tensor '{tensor}' has shape {values.shape}; the config asks for {slot.shape}.")
        return FLOAT
    rows, columns = slot.shape
    rows = rows // divided * place.part[1]
    lead = () if place.index is None else (config.n_routed_experts,)
    if place.name.endswith("attn.wo_a") and len(values.shape) == 3:  # one matrix a group
        lead, rows = (config.o_groups,), rows // config.o_groups
    return detect(family.written(place.name), parts, (*lead, rows, columns))


def _account_for(
    reading: Reading, config, stored: Mapping[str, Stored], used: set[str], drafter: bool, complain
) -> None:
    """Every tensor that is not used is left out for a reason, or belongs to no part of the model."""
    rest = []
    for one, name in reading.names.items():
        if name in used:
            continue
        depth = MTP.match(one)
        if COPY_IN_MTP.match(one):
            reading.left_out[name] = COPY
        elif depth and (drafter or int(depth[1]) >= config.num_nextn_predict_layers):
            reading.left_out[name] = DRAFTER if drafter else UNCOUNTED
        else:
            rest.append(one)
    if not rest:
        return
    spelled = _other_spellings(reading, config, rest)
    for one in rest:
        name = reading.names[one]
        if one not in spelled:
            complain(
                CheckpointError(
                    f"tensor {shown(name)} belongs to no part of this model; does the config fit the checkpoint?"
                )
            )
            continue
        twin = Twin(spelled[one], name)
        if stored[twin.kept][:2] != stored[twin.left][:2]:
            complain(twin.refusal())
        reading.twins.append(twin)
        reading.left_out[name] = TWIN


def _other_spellings(reading: Reading, config, rest: list[str]) -> dict[str, str]:
    """Unused name -> the name in the files that is used for the same tensor."""
    rest_of, found = set(rest), {}
    for name, kept in reading.places.items():
        for family in FAMILIES.values():
            for place, mine in zip(family.places(name, config.o_groups), kept, strict=False):
                leaves = LEAVES[1:] if place.leaf == "weight" else ()
                for leaf in (place.leaf, *leaves):
                    one = f"{place.name}.{leaf}" if leaf else place.name
                    here = f"{mine.name}.{leaf}" if leaf else mine.name
                    if one in rest_of and one != here and here in reading.names:
                        found.setdefault(one, reading.names[here])
    return found


def _check_settings(reading: Reading, config, settings: Settings, complain) -> None:
    """What the config says of a module by name must be what its tensors are; they alone decide about the others."""
    if not settings.modules:
        return
    for name, places in reading.places.items():
        if not reading.slots[name].is_matrix:
            continue
        aliases = {place.name for one in FAMILIES.values() for place in one.places(name, config.o_groups)}
        for alias in aliases & settings.modules.keys():
            told = settings.modules[alias]
            held = reading.formats[places[0].name]
            if (told or FLOAT) != held and held.kind not in ("fp8", "fp4", UNREADABLE.kind):
                complain(
                    CheckpointError(
                        f"the config says that {alias} is stored as {told or FLOAT}, but the tensors of "
                        f"{reading.family.written(places[0].name)} are {held}."
                    )
                )
