"""A model from a checkpoint's tensors, of whatever family: packed weights decoded, each parameter in its type (spec
13)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dsv4_checkpoints import CheckpointError, Format, Place, Reading, Settings, Stored, read

from .config import Config, Options, read_json
from .model import Model
from .quantization import Linear, decode
from .safetensors_folder import read_folder

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0",
    torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
    torch.uint8: "U8", torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
}  # fmt: skip


def load(folder: str | Path, dtype: torch.dtype = torch.float32, options: Options | None = None) -> Model:
    """The model in a checkpoint folder of any family. Raises ConfigError, CheckpointError."""
    config = Config.load(folder)
    settings = Settings.of(read_json(Path(folder) / "config.json"))
    return build(config, read_folder(folder), dtype, options, settings)


def build(
    config: Config,
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    options: Options | None = None,
    settings: Settings | None = None,
) -> Model:
    """A model that computes in `dtype` from a checkpoint's tensors, float or packed. Raises CheckpointError.

    Every tensor must be used, or left out for a reason, and every parameter filled. Matrices take `dtype`; norms,
    hyper-connections, sinks, ape, router biases, compressor projections and the output head stay wide, as published
    (spec 2). MTP blocks that the checkpoint lacks are not there.
    """
    return decoded(config, tensors, dtype, settings).model(options)


@dataclass
class Decoded:
    """What models of one checkpoint are made of: the parameters by published name, and how each was stored."""

    config: Config
    values: dict[str, Tensor]
    kinds: dict[str, str]

    def model(self, options: Options | None = None) -> Model:
        """A new model, which shares the parameters with others from here."""
        model = Model(self.config, options)
        modules = dict(model.named_modules())
        for name, value in self.values.items():
            _give(modules, name, value, self.kinds[name])
        return model


def decoded(
    config: Config, tensors: dict[str, Tensor], dtype: torch.dtype, settings: Settings | None = None
) -> Decoded:
    """What `build` makes a model of, for whoever needs many. Raises CheckpointError."""
    reading = read(config, {name: Stored(DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}, settings)
    for twin in reading.twins:
        if not torch.equal(*(tensors[name].contiguous().view(torch.uint8) for name in twin)):
            raise twin.refusal()
    if reading.mtp_blocks != config.num_nextn_predict_layers:
        ratios = config.compress_ratios[: config.num_hidden_layers + reading.mtp_blocks]
        config = replace(config, num_nextn_predict_layers=reading.mtp_blocks, compress_ratios=ratios)
    values = {name: parameter(reading, name, tensors, dtype) for name in reading.places}
    return Decoded(config, values, {name: _kind(reading, name) for name in values})


def fill(
    module: nn.Module,
    reading: Reading,
    names: Iterable[str],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    prefix: str = "",
) -> None:
    """Give a model, or the part of it whose published names begin with `prefix`, the parameters of these names.

    Raises CheckpointError.
    """
    modules = dict(module.named_modules())
    for name in names:
        value = parameter(reading, name, tensors, dtype)
        _give(modules, name.removeprefix(prefix), value, _kind(reading, name))


def _give(modules: dict[str, nn.Module], name: str, value: Tensor, kind: str) -> None:
    owner, _, leaf = parameter_name(name).rpartition(".")
    if isinstance(modules[owner], Linear):
        modules[owner].stored = kind if kind in ("fp8", "fp4") else "float"
    modules[owner]._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def _kind(reading: Reading, name: str) -> str:
    return reading.formats[reading.places[name][0].name].kind


def parameter(
    reading: Reading,
    name: str,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    rows: slice | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The values of a published name, decoded, in the type in which a model of `dtype` has them; of a matrix in one
    piece, whose rows are stored one by one, these rows alone. `out`, float32 of the name's shape, is memory that they
    may be decoded into. Raises CheckpointError."""
    places, slot = reading.places[name], reading.slots[name]
    if name.endswith(".tid2eid"):
        experts = reading.slots[name.removesuffix("tid2eid") + "weight"].shape[0]
        return _expert_table(reading, places[0], tensors, experts).reshape(slot.shape)
    kind = reading.formats[places[0].name]
    if kind.kind != "float" and len(places) == 1 and places[0].part == (0, 1):
        value = _rows(reading, places[0], kind, tensors, rows, out)
    else:  # which also copies: no parameter shares memory with a tensor of the checkpoint
        value = torch.cat([_rows(reading, place, kind, tensors, rows) for place in places])
    value = value.to(dtype if slot.is_matrix and not _is_wide(name) else torch.promote_types(dtype, torch.float32))
    return value.reshape(-1, *slot.shape[1:]) if rows else value.reshape(slot.shape)


def _rows(
    reading: Reading,
    place: Place,
    kind: Format,
    tensors: Mapping[str, Tensor],
    rows: slice | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The rows that lie at a place, decoded. Raises CheckpointError for what is not finite."""
    parts = {leaf: tensors[name] for leaf, name in reading.parts(place).items()}
    if rows is not None:
        parts = {leaf: value[rows] for leaf, value in parts.items()}
    if place.index is not None:
        parts = {leaf: value[place.index] for leaf, value in parts.items()}
    name = reading.names[place.tensor]
    values = parts[place.leaf] if kind.kind == "float" else decode(parts, kind, out)
    if not _finite(values):
        if kind.kind == "float":
            raise CheckpointError(f"tensor '{name}' holds values that are not finite; it is damaged.")
        raise CheckpointError(f"tensor '{name}' decodes to values that are not finite; its scale or data is damaged.")
    if values.ndim == 3:  # one matrix a group
        values = values.flatten(0, 1)
    part, count = place.part
    return values if count == 1 else values.unflatten(0, (count, -1))[part]


def _finite(values: Tensor) -> bool:
    """Whether all values are finite. A finite sum says so in a thirtieth of the time; another may have overflowed."""
    summed = values.is_floating_point() and values.itemsize > 1 and torch.isfinite(values.sum())
    return bool(summed or torch.isfinite(values).all())


def parameter_name(name: str) -> str:
    """The parameter of a published name: hc_attn_fn -> hc_attn.fn."""
    for site in ("hc_attn", "hc_ffn", "hc_head"):
        name = name.replace(f"{site}_", f"{site}.")
    return name


def _is_wide(name: str) -> bool:
    return name == "head.weight" or name.endswith(("compressor.wkv.weight", "compressor.wgate.weight"))


def _expert_table(reading: Reading, place: Place, tensors: Mapping[str, Tensor], experts: int) -> Tensor:
    name = reading.names[place.tensor]
    table = tensors[name].long()
    if int(table.min()) < 0 or int(table.max()) >= experts:
        raise CheckpointError(f"tensor '{name}' names an expert outside 0 .. {experts - 1}.")
    return table
