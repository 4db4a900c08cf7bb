"""Matrices of one checkpoint family put where another has them: stacked, divided, joined, packed as MLX packs."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import mlx.core as mx

from dsv4_checkpoints import FLOAT, Family, Format, Place, Reading

from . import quantization

MX_GROUP = 32  # of mxfp4 and mxfp8
TILE = quantization.TILE


class Matrix(NamedTuple):
    """Values [..., rows, columns] as plain numbers or as MLX packs them, and how."""

    format: Format
    parts: dict[str, mx.array]  # weight; scales and biases if it is packed

    def map(self, change) -> "Matrix":
        """The matrix whose parts are changed alike: all have the same leading axes and rows."""
        return Matrix(self.format, {leaf: change(value) for leaf, value in self.parts.items()})

    def decoded(self) -> mx.array:
        """The values in float32, exactly but for affine's one rounding."""
        return quantization.decode_mlx(self.parts, self.format) if self.format.bits else self.parts["weight"]


class Target(NamedTuple):
    """One module of a family: the published tensors whose rows it holds, entry by entry and part by part."""

    name: str
    leaf: str
    pieces: list[tuple[str, int, int, Place]]  # published name, chunk i of n of its rows, place

    @property
    def is_stacked(self) -> bool:
        return self.pieces[0][3].index is not None


def targets(reading: Reading, family: Family, groups: int) -> Iterator[Target]:
    """All modules of a family that hold what was read, in the tree's order."""
    found: dict[str, Target] = {}
    for name in reading.places:
        places = family.places(name, groups)
        for chunk, place in enumerate(places):
            target = found.setdefault(place.name, Target(place.name, place.leaf, []))
            target.pieces.append((name, chunk, len(places), place))
    yield from found.values()


def assembled(target: Target, reading: Reading, tensors: Mapping[str, mx.array], family: Family, groups: int) -> Matrix:
    """What a module of a family holds, from the tensors of another; decoded, where its experts' formats differ."""
    whole = _whole_stack(target, reading)
    if whole is not None:
        return _matrix(whole, reading, tensors)
    entries: dict[int | None, list[Matrix]] = {}
    for name, chunk, chunks, place in sorted(target.pieces, key=lambda piece: (piece[3].index or 0, piece[3].part)):
        rows = _rows(name, reading, tensors)
        if chunks > 1:
            rows = rows.map(lambda value, i=chunk, n=chunks: mx.split(value, n, axis=0)[i])
        entries.setdefault(place.index, []).append(rows)
    joined = [_joined(rows, mx.concatenate) for rows in entries.values()]
    value = _joined(joined, mx.stack) if target.is_stacked else joined[0]
    if target.name.endswith("attn.wo_a") and family.wo_a_axes == 3:
        value = value.map(lambda part: part.reshape(groups, -1, part.shape[-1]))
    return value


def _whole_stack(target: Target, reading: Reading) -> Place | None:
    """The place of a tensor that holds the same entries in the same order already."""
    if not target.is_stacked:
        return None
    found = [reading.places[name] for name, *_ in target.pieces]
    first = found[0][0]
    wanted = [[first._replace(index=place.index)] for *_, place in target.pieces]
    alike = first.part == target.pieces[0][3].part == (0, 1)
    return first if alike and first.index is not None and found == wanted else None


def _joined(matrices: list[Matrix], join) -> Matrix:
    if len({matrix.format for matrix in matrices}) > 1:
        matrices = [Matrix(FLOAT, {"weight": matrix.decoded().astype(mx.float32)}) for matrix in matrices]
    first = matrices[0]
    if len(matrices) == 1 and join is mx.concatenate:
        return first
    return Matrix(first.format, {leaf: join([matrix.parts[leaf] for matrix in matrices]) for leaf in first.parts})


def _rows(name: str, reading: Reading, tensors: Mapping[str, mx.array]) -> Matrix:
    """A published tensor: its rows joined from where they lie."""
    rows = []
    for place in reading.places[name]:
        value = _matrix(place, reading, tensors)
        if place.index is not None:
            value = value.map(lambda part, index=place.index: part[index])
        if value.parts["weight"].ndim == 3:  # wo_a, one matrix a group
            value = value.map(lambda part: part.flatten(0, 1))
        part, count = place.part
        if count > 1:
            value = value.map(lambda array, i=part, n=count: mx.split(array, n, axis=0)[i])
        rows.append(value)
    return _joined(rows, mx.concatenate)


def _matrix(place: Place, reading: Reading, tensors: Mapping[str, mx.array]) -> Matrix:
    """All that lies in the tensor of a place; what is packed as published is packed as MLX does, or decoded."""
    parts = {leaf: tensors[name] for leaf, name in reading.parts(place).items()}
    stored = reading.formats[place.name]
    if stored.kind not in ("fp8", "fp4"):
        parts["weight"] = parts.pop(place.leaf)
        return Matrix(stored, parts)
    weight, scale = parts["weight"], parts["scale"]
    columns = weight.shape[1] * (2 if stored.kind == "fp4" else 1)
    if scale.dtype != mx.uint8 or columns % MX_GROUP:
        decode = quantization.decode_fp4 if stored.kind == "fp4" else quantization.decode_fp8
        return Matrix(FLOAT, {"weight": decode(weight, scale)})
    words = mx.contiguous(weight).view(mx.uint32)
    if stored.kind == "fp4":
        return Matrix(Format("mxfp4", 4, MX_GROUP), {"weight": words, "scales": scale})
    by_row = mx.repeat(scale, TILE, axis=0)[: weight.shape[0]]
    by_group = mx.repeat(by_row, TILE // MX_GROUP, axis=1)[:, : columns // MX_GROUP]
    return Matrix(Format("mxfp8", 8, MX_GROUP), {"weight": words, "scales": by_group})
