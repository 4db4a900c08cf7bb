"""A model from raw checkpoint tensors: names, packed weights, and the type each parameter computes in (spec 13)."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import Config, Options
from .model import Model
from .quantization import Linear, decode_fp4, decode_fp8
from .safetensors_folder import CheckpointError, read_folder

HC_NAME = re.compile(r"(^|\.)(hc_(?:attn|ffn|head))_(fn|base|scale)$")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def load(folder: str | Path, dtype: torch.dtype = torch.float32, options: Options | None = None) -> Model:
    """The model in a checkpoint folder under its raw names. Raises ConfigError, CheckpointError."""
    return build(Config.load(folder), read_folder(folder), dtype, options)


def build(config: Config, tensors: dict[str, Tensor], dtype: torch.dtype, options: Options | None = None) -> Model:
    """A model that computes in `dtype` from raw-named tensors, float or packed. Raises CheckpointError.

    Every tensor must be used, every parameter filled. Matrices take `dtype`; norms, hyper-connections, sinks, ape,
    router biases, compressor projections and the output head stay wide, as published (spec 2).
    """
    if not config.num_nextn_predict_layers and any("markov_head" in name for name in tensors):  # Flash-0731's drafter
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("mtp.")}
    _check_ends(config, tensors)
    model = Model(config, options)
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    wanted = torch.promote_types(dtype, torch.float32)
    filled = set()
    for name, tensor, stored in decoded(tensors):
        target = HC_NAME.sub(r"\1\2.\3", name)
        if target not in parameters or raw_name(target) != name:
            raise CheckpointError(
                f"tensor '{name}' belongs to no part of this model; does the config fit the checkpoint?"
            )
        shape = tuple(parameters[target].shape)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"tensor '{name}' has shape {tuple(tensor.shape)}; the config asks for {shape}.")
        owner, _, leaf = target.rpartition(".")
        module = modules[owner]
        if leaf == "tid2eid":
            value = _expert_table(name, tensor, config.n_routed_experts)
        elif tensor.dtype not in FLOATS:
            raise CheckpointError(f"tensor '{name}' has type {tensor.dtype}; a floating-point type was expected.")
        else:
            value = tensor.to(dtype if leaf == "weight" and tensor.ndim == 2 and not _is_wide(target) else wanted)
        if isinstance(module, Linear):
            module.stored = stored
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        filled.add(target)
    for target in parameters:
        if target not in filled:
            raise CheckpointError(
                f"tensor '{raw_name(target)}' is missing; the config asks for shape {tuple(parameters[target].shape)}."
            )
    return model


def _check_ends(config: Config, tensors: dict[str, Tensor]) -> None:
    """What a config claims that the checkpoint does not hold, seen before memory is taken for it."""
    blocks, held = config.num_nextn_predict_layers, any(name.startswith("mtp.") for name in tensors)
    if blocks and "mtp.0.enorm.weight" not in tensors and (held or blocks > 1):
        raise CheckpointError(
            f"the config counts {blocks} MTP blocks, but the checkpoint holds none: mtp.0 to mtp.2 of Flash-0731 are "
            "a drafter of another kind; for the backbone alone set num_nextn_predict_layers to 0 and take its entries "
            "off the end of compress_ratios."
        )
    last = f"layers.{config.num_hidden_layers - 1}"
    for name in (f"{last}.attn_norm.weight", f"{last}.ffn.experts.{config.n_routed_experts - 1}.w1.weight"):
        if name not in tensors:
            raise CheckpointError(f"tensor '{name}' is missing; does the config fit the checkpoint?")
    shapes = {
        "embed.weight": (config.vocab_size, config.hidden_size),
        "layers.0.attn.wq_a.weight": (config.q_lora_rank, config.hidden_size),
        "layers.0.attn.wq_b.weight": (config.num_attention_heads * config.head_dim, config.q_lora_rank),
    }
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"tensor '{name}' has shape {tuple(tensors[name].shape)}; the config asks for {shape}."
            )


def decoded(tensors: dict[str, Tensor]):
    """Yield (name, values, stored): packed fp8 and fp4 weights decoded exactly, their scales consumed."""
    for name, tensor in tensors.items():
        owner = name.removesuffix(".weight")
        scale = tensors.get(f"{owner}.scale") if name.endswith(".weight") else None
        if name.endswith(".scale") and f"{name.removesuffix('.scale')}.weight" in tensors:
            if tensors[f"{name.removesuffix('.scale')}.weight"].dtype not in (torch.float8_e4m3fn, torch.int8):
                raise CheckpointError(
                    f"tensor '{name}' is a scale, but its weight is not packed; remove it or pack the weight."
                )
            continue
        if tensor.dtype not in (torch.float8_e4m3fn, torch.int8):
            if tensor.dtype.is_floating_point and not torch.isfinite(tensor).all():
                raise CheckpointError(f"tensor '{name}' holds values that are not finite; it is damaged.")
            yield name, tensor, "float"
            continue
        stored = "fp8" if tensor.dtype == torch.float8_e4m3fn else "fp4"
        if scale is None:
            raise CheckpointError(f"tensor '{name}' is packed as {stored} and its scale '{owner}.scale' is missing.")
        if tensor.ndim != 2:
            raise CheckpointError(
                f"tensor '{name}' is packed as {stored} and has shape {tuple(tensor.shape)}; it must be a matrix."
            )
        rows, columns = tensor.shape
        expected = (-(-rows // 128), -(-columns // 128)) if stored == "fp8" else (rows, -(-columns // 16))
        if tuple(scale.shape) != expected:
            raise CheckpointError(
                f"tensor '{owner}.scale' has shape {tuple(scale.shape)}; {stored} weights of shape "
                f"{(rows, columns)} need {expected}."
            )
        values = decode_fp8(tensor, scale) if stored == "fp8" else decode_fp4(tensor, scale)
        if not torch.isfinite(values).all():
            raise CheckpointError(
                f"tensor '{name}' decodes to values that are not finite; its scale or data is damaged."
            )
        yield name, values, stored


def raw_name(target: str) -> str:
    """The checkpoint's name of a parameter: hc_attn.fn -> hc_attn_fn."""
    return re.sub(r"(hc_(?:attn|ffn|head))\.(fn|base|scale)$", r"\1_\2", target)


def _is_wide(target: str) -> bool:
    return target == "head.weight" or target.endswith(("compressor.wkv.weight", "compressor.wgate.weight"))


def _expert_table(name: str, table: Tensor, experts: int) -> Tensor:
    if table.dtype not in (torch.int64, torch.int32):
        raise CheckpointError(f"tensor '{name}' has type {table.dtype}; expert ids must be int64 or int32.")
    if int(table.min()) < 0 or int(table.max()) >= experts:
        raise CheckpointError(f"tensor '{name}' names an expert outside 0 .. {experts - 1}.")
    return table.long()
