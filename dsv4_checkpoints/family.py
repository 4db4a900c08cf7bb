"""How one family spells the tree: a table of the names that differ, and how it lays matrices out."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import NamedTuple

BLOCK = re.compile(r"(layers|mtp)\.(\d+)\.(.+)")
EXPERT = re.compile(r"ffn\.experts\.(\d+)\.")
WRAPPERS = ("language_model.", "model.")  # what programs put before the same names
LEAVES = ("weight", "scale", "scales", "biases")


class Spot(NamedTuple):
    """Where a family puts a matrix, if not simply whole under a name of its own.

    stacked: along a leading axis, one entry an expert; part: (i, n), the i-th of n equal parts of the rows there;
    divided: the matrix's rows lie in as many tensors as there are output groups, `{g}` in the name; leaf: the name of
    its values, "" where the module's name is the tensor's.
    """

    name: str
    stacked: bool = False
    part: tuple[int, int] = (0, 1)
    divided: bool = False
    leaf: str = "weight"


class Place(NamedTuple):
    """Where some rows of a tensor lie: tensor ``name`` (no leaf), its entry ``index``, part (i, n) of the rows."""

    name: str
    index: int | None
    part: tuple[int, int]
    leaf: str

    @property
    def tensor(self) -> str:
        """The name of the values."""
        return f"{self.name}.{self.leaf}" if self.leaf else self.name


@dataclass(frozen=True, eq=False)
class Family:
    """One family of checkpoints.

    ``top`` and ``block`` map published names, of a whole model and within a block, to this family's where they differ;
    matrices and norms go without ".weight", an expert's number is `{e}`. ``prefix`` stands before all names but those
    in ``bare`` and MTP blocks. ``packing``: how quantised matrices are stored, "published" (weight, scale), "mlx"
    (weight, scales, biases) or "none". ``wo_a_axes``: 2 as published, 3 with one matrix a group.
    ``ports``: programs that are known to load it, besides ours.
    """

    id: str
    title: str
    top: dict[str, str] = field(default_factory=dict)
    block: dict[str, str | Spot] = field(default_factory=dict)
    prefix: str = ""
    bare: tuple[str, ...] = ()
    packing: str = "mlx"
    wo_a_axes: int = 2
    mtp_as_published: bool = False
    ports: tuple[str, ...] = ()

    def places(self, name: str, groups: int) -> list[Place]:
        """Where the tensor of a published name lies here, in the order of its rows; without prefix."""
        return [*_places(self, name, groups)]

    def written(self, tensor: str) -> str:
        """The whole name of a tensor in a folder of this family."""
        return tensor if tensor.startswith(("mtp.", *self.bare)) else self.prefix + tensor


@functools.lru_cache(maxsize=1 << 14)  # whoever builds small models by the hundred asks for the same names
def _places(family: Family, name: str, groups: int) -> list[Place]:
    owner, leaf = (name[:-7], "weight") if name.endswith(".weight") else (name, "")
    found = BLOCK.fullmatch(owner)
    if not found:
        return [Place(family.top.get(owner, owner), None, (0, 1), leaf)]
    kind, number, local = found.groups()
    if kind == "mtp" and family.mtp_as_published:
        return [Place(owner, None, (0, 1), leaf)]
    expert = EXPERT.match(local)
    key = f"ffn.experts.{{e}}.{local[expert.end() :]}" if expert else local
    spot = family.block.get(key, key)
    if isinstance(spot, str):
        spot = Spot(spot, leaf=leaf)
    before = f"{kind}.{number}."
    index = int(expert[1]) if expert and spot.stacked else None
    if spot.divided:
        return [Place(before + spot.name.format(g=g), None, spot.part, spot.leaf) for g in range(groups)]
    at = spot.name.replace("{e}", expert[1]) if expert else spot.name
    return [Place(before + at, index, spot.part, spot.leaf)]


def plain(name: str) -> str:
    """A name without what programs put before it."""
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def hyper_connections(attn: str, ffn: str) -> dict[str, str]:
    """The six names of a block's two sites, from `"attn_hc.{}"` and `"ffn_hc.{}"`."""
    sites = {"hc_attn": attn, "hc_ffn": ffn}
    return {f"{site}_{one}": to.format(one) for site, to in sites.items() for one in ("fn", "base", "scale")}


def collapse(to: str) -> dict[str, str]:
    """The three names of the streams' last collapse, from `"hc_head.{}"`."""
    return {f"hc_head_{one}": to.format(one) for one in ("fn", "base", "scale")}
