"""How a matrix is stored, told from the types and shapes of its tensors, which leave no doubt if its size is known."""

from collections.abc import Mapping
from typing import NamedTuple

from .errors import CheckpointError
from .stored import Stored

FLOATS = ("F64", "F32", "BF16", "F16")
TILE = 128  # fp8: one scale for a tile of 128 x 128
FP4_GROUP = 32
AFFINE_BITS = (1, 2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (16, 32, 64, 128)
# MLX's formats without biases: bits and group say which.
SCALED = {(4, 32): "mxfp4", (8, 32): "mxfp8", (4, 16): "nvfp4"}


class Format(NamedTuple):
    """``kind``: float, fp8 and fp4 as published, or MLX's affine, mxfp4, mxfp8, nvfp4 with their bits and group."""

    kind: str
    bits: int = 0
    group: int = 0

    def __str__(self) -> str:
        if self.kind == "affine":
            return f"{self.bits} bits in groups of {self.group}"
        return "plain numbers" if self.kind == "float" else self.kind


FLOAT = Format("float")


def detect(name: str, parts: Mapping[str, Stored], shape: tuple[int, ...]) -> Format:
    """The format of the matrices [..., rows, columns] whose tensors ``parts`` ("" or "weight", "scale", ...) are.

    Raises CheckpointError where they cannot be what the config asks for.
    """
    leaf = "weight" if "weight" in parts else ""
    weight = parts[leaf]
    tensor = f"{name}.{leaf}" if leaf else name
    if "scales" in parts:
        return _mlx(name, parts, shape)
    if "biases" in parts:
        raise CheckpointError(f"tensor '{name}.biases' belongs to a quantised weight whose '{name}.scales' is missing.")
    if weight.dtype in FLOATS:
        if "scale" in parts:
            raise CheckpointError(
                f"tensor '{name}.scale' is a scale, but its weight is not packed; remove it or pack the weight."
            )
        _fits(tensor, weight.shape, shape)
        return FLOAT
    kind = _published_kind(tensor, weight, shape)
    if kind == "mlx":
        raise CheckpointError(f"tensor '{tensor}' is quantised and its scales '{name}.scales' are missing.")
    if "scale" not in parts:
        raise CheckpointError(f"tensor '{tensor}' is packed as {kind} and its scale '{name}.scale' is missing.")
    if len(weight.shape) != 2:
        raise CheckpointError(
            f"tensor '{tensor}' is packed as {kind} and has shape {weight.shape}; it must be a matrix."
        )
    rows, columns = weight.shape
    packed = (*shape[:-1], -(-shape[-1] // 2)) if kind == "fp4" else shape
    _fits(tensor, weight.shape, packed)
    grid = (-(-rows // TILE), -(-columns // TILE)) if kind == "fp8" else (rows, -(-2 * columns // FP4_GROUP))
    scale = parts["scale"]
    if scale.shape != grid:
        raise CheckpointError(
            f"tensor '{name}.scale' has shape {scale.shape}; {kind} weights of shape {weight.shape} need {grid}."
        )
    if scale.dtype not in ("F8_E8M0", "U8", *FLOATS):
        raise CheckpointError(f"tensor '{name}.scale' has type {scale.dtype}; a scale is F8_E8M0 or a float.")
    return Format(kind)


def _published_kind(tensor: str, weight: Stored, shape: tuple[int, ...]) -> str:
    if weight.dtype == "F8_E4M3":
        return "fp8"
    if weight.dtype == "I8":
        return "fp4"
    if weight.dtype == "U8":  # MLX reads fp8 so, and some write fp4 so
        return "fp4" if weight.shape[-1:] and 2 * weight.shape[-1] == shape[-1] else "fp8"
    if weight.dtype == "U32":
        return "mlx"
    raise CheckpointError(f"tensor '{tensor}' has type {weight.dtype}; a floating-point type was expected.")


def _mlx(name: str, parts: Mapping[str, Stored], shape: tuple[int, ...]) -> Format:
    weight, scales, biases = parts["weight"], parts["scales"], parts.get("biases")
    if weight.dtype != "U32":
        raise CheckpointError(f"tensor '{name}.weight' has scales and type {weight.dtype}; MLX packs weights as U32.")
    *lead, columns = shape
    words, groups = weight.shape[-1:], scales.shape[-1:]
    fits = weight.shape[:-1] == scales.shape[:-1] == tuple(lead) and groups and groups[0] and words
    group, rest = divmod(columns, groups[0]) if fits else (0, 1)
    bits, more = divmod(words[0] * 32, columns) if fits else (0, 1)
    found = None
    if not rest and not more and biases is not None and bits in AFFINE_BITS and group in AFFINE_GROUPS:
        found = Format("affine", bits, group)
    elif not rest and not more and biases is None and (bits, group) in SCALED:
        found = Format(SCALED[bits, group], bits, group)
    if found is None:
        raise CheckpointError(
            f"tensor '{name}.weight' has shape {weight.shape} and its scales {scales.shape}, "
            f"{'with' if biases is not None else 'without'} biases; no quantisation of {shape} gives these."
        )
    wanted = FLOATS if found.kind == "affine" else ("U8", "F8_E8M0" if found.kind.startswith("mx") else "F8_E4M3")
    if scales.dtype not in wanted:
        raise CheckpointError(f"tensor '{name}.scales' has type {scales.dtype}; {found} needs {' or '.join(wanted)}.")
    if biases is not None and (biases.shape, biases.dtype) != (scales.shape, scales.dtype):
        raise CheckpointError(
            f"tensor '{name}.biases' is {biases.dtype} of shape {biases.shape}; its scales are {scales.dtype} of shape "
            f"{scales.shape}."
        )
    return found


def _fits(tensor: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise CheckpointError(f"tensor '{tensor}' has shape {found}; the config asks for {wanted}.")
