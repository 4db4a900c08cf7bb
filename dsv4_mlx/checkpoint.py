"""From the published checkpoint to parameters: names, packed weights, stacked experts, dtypes (spec 13)."""

import re

import mlx.core as mx

from . import quantization
from .config import ModelArgs
from .errors import UsageError

HYPER_CONNECTION = re.compile(r"(^|\.)hc_(attn|ffn|head)_(fn|base|scale)$")
EXPERT = re.compile(r"(.*\.ffn\.experts)\.(\d+)\.(w[123])\.weight")
SHARED_WITH_BACKBONE = re.compile(r"mtp\.\d+\.(emb|embed|head)\.")
FLOAT32_ONLY = (".fn", ".base", ".scale", ".attn_sink", ".ape", ".gate.bias")


def sanitize(weights: dict[str, mx.array], args: ModelArgs) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Raw names and dtypes -> the model's parameters, and how each linear layer's weight was stored.

    Packed weights are decoded to float32, experts stacked, ``hc_attn_fn`` becomes ``hc_attn.fn``, int64
    tables become int32, wo_a one matrix a group. MTP tensors that the config does not count are dropped.
    What is converted stays. Raises UsageError.
    """
    weights = _renamed(weights)
    _refuse_drafter(weights, args)
    weights = {name: value for name, value in weights.items() if _wanted(name, args)}
    weights, stored = _decode(weights)
    for name, value in weights.items():
        if name.endswith(".tid2eid"):
            weights[name] = value.astype(mx.int32)
    weights, stored = _stack_experts(weights, stored, args)
    for name, value in weights.items():
        if name.endswith(".wo_a.weight"):
            weights[name] = value.reshape(args.o_groups, -1, value.shape[-1])
    return {name: _inputs_first(name, value) for name, value in weights.items()}, stored


def _renamed(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """One spelling of each name; a checkpoint that holds two of one tensor is refused, as they may differ."""
    renamed, first = {}, {}
    for name, value in weights.items():
        one = HYPER_CONNECTION.sub(r"\1hc_\2.\3", name.removeprefix("model."))
        if one in renamed:
            raise UsageError(f"The checkpoint holds {first[one]} and {name}, two spellings of one tensor; keep one.")
        renamed[one], first[one] = value, name
    return renamed


def _refuse_drafter(weights: dict[str, mx.array], args: ModelArgs):
    """Flash-0731's ``mtp.0`` to ``mtp.2`` are the stages of a draft model of another kind."""
    if not args.num_nextn_predict_layers:
        return
    held = any(name.startswith("mtp.") for name in weights)
    if (held and "mtp.0.enorm.weight" not in weights) or (not held and args.num_nextn_predict_layers > 1):
        raise UsageError(
            f"The config counts {args.num_nextn_predict_layers} MTP blocks, but the checkpoint holds none: mtp.0 to "
            "mtp.2 of Flash-0731 are a drafter of another kind; for the backbone alone set num_nextn_predict_layers "
            "to 0 and take its entries off the end of compress_ratios."
        )


def _inputs_first(name: str, value: mx.array) -> mx.array:
    """The matrix [..., out, in] as a view of memory that lies [..., in, out].

    The product of one token with it then runs along memory: 7 GFLOP/s instead of 4 in the BLAS of MLX's wheel.
    Not the embedding, whose rows are read.
    """
    if not name.endswith((".weight", ".fn")) or value.ndim < 2 or name.endswith("embed.weight"):
        return value
    return mx.contiguous(value.swapaxes(-1, -2)).swapaxes(-1, -2)


def _wanted(name: str, args: ModelArgs) -> bool:
    if not name.startswith("mtp."):
        return True
    return int(name.split(".")[1]) < args.num_nextn_predict_layers and not SHARED_WITH_BACKBONE.match(name)


def _decode(weights: dict[str, mx.array]) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Replace each pair of ``X.weight`` and ``X.scale`` by the floats that it stands for."""
    decoded, stored = {}, {}
    for name, value in weights.items():
        path, _, kind = name.rpartition(".")
        scale = weights.get(f"{path}.scale")
        if kind == "weight" and scale is not None:
            stored[path] = _storage(value, scale)
            decode = quantization.decode_fp4 if stored[path] == "fp4" else quantization.decode_fp8
            decoded[name] = decode(value, scale)
        elif not (kind == "scale" and f"{path}.weight" in weights):
            decoded[name] = value
    return decoded, stored


def _storage(weight: mx.array, scale: mx.array) -> str:
    """fp4 and fp8 are both bytes: fp4 has one scale for 16 bytes of a row, fp8 one a tile of rows as well."""
    one_a_group = scale.shape[0] == weight.shape[0] and scale.shape[-1] * 16 == weight.shape[-1]
    return "fp4" if one_a_group else "fp8"


def _stack_experts(weights: dict[str, mx.array], stored: dict[str, str], args: ModelArgs):
    """``ffn.experts.E.w1.weight`` [I, D] of all E -> ``ffn.experts.w1.weight`` [E, I, D]."""
    stacked, stacks = {}, {}
    for name, value in weights.items():
        if found := EXPERT.fullmatch(name):
            prefix, expert, matrix = found.groups()
            stacks.setdefault(f"{prefix}.{matrix}", {})[int(expert)] = value
            kind = stored.pop(f"{prefix}.{expert}.{matrix}", "float")
            if stored.setdefault(f"{prefix}.{matrix}", kind) != kind:
                raise ValueError(f"The experts of {prefix}.{matrix} are stored in more than one format.")
        else:
            stacked[name] = value
    for path, experts in stacks.items():
        if sorted(experts) != list(range(args.n_routed_experts)):
            raise ValueError(f"{path} has {len(experts)} experts, but n_routed_experts is {args.n_routed_experts}.")
        stacked[f"{path}.weight"] = mx.stack([experts[index] for index in range(len(experts))])
    return stacked, stored


def may_cast(path: str) -> bool:
    """May it leave float32? Hyper-connections, sinks, ape and router bias may not (spec 2)."""
    return not path.endswith(FLOAT32_ONLY)
