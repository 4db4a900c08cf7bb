"""From a checkpoint of any family to parameters: names, packed weights, stacked experts, dtypes (spec 13)."""

from collections.abc import Mapping

import mlx.core as mx

from dsv4_checkpoints import FAMILIES, FLOAT, CheckpointError, Format, Reading, Settings, Stored, read

from .config import ModelArgs
from .errors import UsageError, as_usage_error
from .respelling import Matrix, Target, assembled, targets

FLOAT32_ONLY = (".fn", ".base", ".scale", ".attn_sink", ".ape", ".gate.bias")
OWN = FAMILIES["F0"]
DTYPES = {
    mx.float32: "F32", mx.bfloat16: "BF16", mx.float16: "F16", mx.float64: "F64", mx.bool_: "BOOL",
    mx.int8: "I8", mx.int16: "I16", mx.int32: "I32", mx.int64: "I64",
    mx.uint8: "U8", mx.uint16: "U16", mx.uint32: "U32", mx.uint64: "U64",
}  # fmt: skip


def sanitize(
    weights: Mapping[str, mx.array], args: ModelArgs
) -> tuple[dict[str, mx.array], dict[str, Format], dict[str, str], Reading]:
    """A checkpoint's tensors -> the model's parameters.

    Also returns, by module path, in which of MLX's formats a matrix is packed and how the checkpoint stored it
    ("float", "fp8", "fp4"), and how it was read. What has been converted stays. Raises UsageError.
    """
    held = getattr(weights, "stored", None)  # a folder's headers tell fp8 from bytes, which MLX's types do not
    if held is None:
        held = {name: Stored(DTYPES[value.dtype], value.shape) for name, value in weights.items()}
    reading = reading_of(held, args)
    refuse_twins(reading, weights)
    return *parameters_of(reading, weights, args), reading


def parameters_of(
    reading: Reading, weights: Mapping[str, mx.array], args: ModelArgs
) -> tuple[dict[str, mx.array], dict[str, Format], dict[str, str]]:
    """The parameters that the places of a reading make; the formats and kinds of storage by module path, as above."""
    parameters, packed, stored = {}, {}, {}
    for target in targets(reading, OWN, args.o_groups):
        stored[target.name] = _published(reading, target)
        matrix = assembled(target, reading, weights, OWN, args.o_groups)
        if matrix.format != FLOAT and target.name.endswith(".ffn.gate"):  # is read as it is, see Router
            matrix = Matrix(FLOAT, {"weight": matrix.decoded()})
        if matrix.format != FLOAT:
            packed[target.name] = matrix.format
        for leaf, value in matrix.parts.items():
            name = f"{target.name}.{leaf}" if target.leaf else target.name
            parameters[name] = _as_parameter(name, value, args.n_routed_experts)
    return parameters, packed, stored


def reading_of(stored: Mapping[str, Stored], args: ModelArgs) -> Reading:
    """How tensors are read as a model of these args, and what the config says of their formats. Raises UsageError."""
    told = {"quantization": args.quantization, "quantization_config": args.quantization_config}
    try:
        return read(args, stored, Settings.of(told))
    except CheckpointError as error:
        raise as_usage_error(error) from error


def refuse_twins(reading: Reading, weights: Mapping[str, mx.array]):
    """Raise UsageError where two spellings of one tensor hold different values."""
    for twin in reading.twins:
        kept, left = (weights[name] for name in twin)
        if kept.shape != left.shape or not mx.array_equal(_bits(kept), _bits(left)).item():
            raise as_usage_error(twin.refusal())


def _bits(value: mx.array) -> mx.array:
    return mx.contiguous(value).flatten().view(mx.uint8)


def _published(reading: Reading, target: Target) -> str:
    """Whether a module's weights were packed as published. Raises UsageError where only some of its experts' were."""
    kinds = {reading.formats[reading.places[name][0].name].kind for name, *_ in target.pieces}
    kinds = {kind if kind in ("fp8", "fp4") else "float" for kind in kinds}
    if len(kinds) > 1:
        raise UsageError(f"The experts of {target.name} are stored in more than one format.")
    return kinds.pop()


def _as_parameter(name: str, value: mx.array, experts: int) -> mx.array:
    if name.endswith(".tid2eid"):
        if value.min().item() < 0 or value.max().item() >= experts:  # before 64 bits become 32
            raise UsageError(f"Tensor {name} names an expert outside 0 .. {experts - 1}.")
        return value.astype(mx.int32)
    if mx.issubdtype(value.dtype, mx.floating) and name.endswith((".weight", ".fn")):
        return _inputs_first(name, value)
    return value


def _inputs_first(name: str, value: mx.array) -> mx.array:
    """The matrix [..., out, in] as a view of memory that lies [..., in, out].

    The product of one token with it then runs along memory: 7 GFLOP/s instead of 4 in the BLAS of MLX's wheel.
    Not the embedding, whose rows are read.
    """
    if value.ndim < 2 or name.endswith("embed.weight"):
        return value
    return mx.contiguous(value.swapaxes(-1, -2)).swapaxes(-1, -2)


def may_cast(path: str) -> bool:
    """May it leave its type? Hyper-connections, sinks, ape and router bias may not (spec 2), nor scales of weights."""
    return not path.endswith((*FLOAT32_ONLY, ".scales", ".biases"))
