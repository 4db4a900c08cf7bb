"""From the published checkpoint to parameters: names, packed weights, stacked experts, dtypes (spec 13)."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
from mlx.utils import tree_map_with_path

from . import quantization
from .config import ModelArgs

if TYPE_CHECKING:
    from .model import Model

HYPER_CONNECTION = re.compile(r"(^|\.)hc_(attn|ffn|head)_(fn|base|scale)$")
EXPERT = re.compile(r"(.*\.ffn\.experts)\.(\d+)\.(w[123])\.weight")
SHARED_WITH_BACKBONE = re.compile(r"mtp\.\d+\.(emb|embed|head)\.")
FLOAT32_ONLY = (".fn", ".base", ".scale", ".attn_sink", ".ape", ".gate.bias")


def sanitize(weights: dict[str, mx.array], args: ModelArgs) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Raw names and dtypes -> the model's parameters, and how each linear layer's weight was stored.

    Packed weights are decoded to float32, experts stacked, ``hc_attn_fn`` becomes ``hc_attn.fn``, int64
    tables become int32, wo_a one matrix a group. MTP tensors that the config does not count are dropped.
    What is converted stays.
    """
    weights = {name.removeprefix("model."): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if _wanted(name, args)}
    weights, stored = _decode(weights)
    weights = {HYPER_CONNECTION.sub(r"\1hc_\2.\3", name): value for name, value in weights.items()}
    for name, value in weights.items():
        if name.endswith(".tid2eid"):
            weights[name] = value.astype(mx.int32)
    weights, stored = _stack_experts(weights, stored, args)
    for name, value in weights.items():
        if name.endswith(".wo_a.weight"):
            weights[name] = value.reshape(args.o_groups, -1, value.shape[-1])
    return {name: _inputs_first(name, value) for name, value in weights.items()}, stored


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


def read_tensors(folder: Path) -> dict[str, mx.array]:
    """All tensors of ``model.safetensors``, or of the shards that ``model.safetensors.index.json`` lists."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        shards = ["model.safetensors"]
    weights = {}
    for shard in shards:
        if not (folder / shard).exists():
            raise FileNotFoundError(f"The checkpoint has no {shard}.")
        weights.update(mx.load(str(folder / shard)))
    return weights


def load(folder: str | Path, dtype: mx.Dtype | None = None, **options) -> "Model":
    """The model of a checkpoint folder, with its weights.

    ``dtype`` is float32 (all parameters), bfloat16 or float16 (all but those that ``may_cast`` keeps), or
    None for the config's torch_dtype. ``options`` replace keys of the config: ``shared_expert_clamp=False``.
    """
    from .model import Model  # model.py needs this module for its own sanitize

    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    unknown = sorted(set(options) - set(ModelArgs.__dataclass_fields__))
    if unknown:
        raise ValueError(f"There is no option {', '.join(unknown)}.")
    args = ModelArgs.from_dict(config | options)
    model = Model(args)
    model.load_weights(list(model.sanitize(read_tensors(folder)).items()), strict=True)
    cast(model, dtype if dtype is not None else getattr(mx, args.torch_dtype))
    mx.eval(model.parameters())
    return model


def cast(model: "Model", dtype: mx.Dtype):
    """Give every float parameter ``dtype``, but float32 to those that may not leave it."""

    def one(path: str, value: mx.array) -> mx.array:
        if not mx.issubdtype(value.dtype, mx.floating):
            return value
        return value.astype(dtype if may_cast(path) else mx.float32)

    model.update(tree_map_with_path(one, model.parameters()))
