"""The model of a checkpoint folder, with its weights."""

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from .checkpoint import may_cast
from .config import ModelArgs
from .errors import UsageError, reason
from .model import Model
from .quantization import pack
from .safetensors_folder import Tensors, args_of, read_config

LARGEST_SCALE = 246  # 2^119: what it scales, 448 at most, is still a number


def load(folder: str | Path, dtype: mx.Dtype | None = None, **options) -> Model:
    """The model of a checkpoint folder, with its weights.

    ``dtype`` is float32 (all parameters), bfloat16 or float16 (all but those that ``may_cast`` keeps), or
    None for the config's torch_dtype. ``options`` replace keys of the config: ``shared_expert_clamp=False``.
    Raises UsageError for what the folder holds, ValueError for an option that there is not.
    """
    folder = Path(folder)
    config = read_config(folder)
    unknown = sorted(set(options) - set(ModelArgs.__dataclass_fields__))
    if unknown:
        raise ValueError(f"There is no option {', '.join(unknown)}.")
    args = args_of(folder, config | options)
    model = Model(args)
    tensors = Tensors(folder)
    try:  # MLX reads late, as soon as a value is looked at
        fill(model, tensors)
        cast(model, dtype if dtype is not None else getattr(mx, args.torch_dtype))
        mx.eval(model.parameters())
    except RuntimeError as error:
        raise UsageError(f"The tensors in {folder} cannot be read ({reason(error)}).") from error
    refuse_damage(model)
    return model


def fill(model: Model, tensors: Mapping[str, mx.array]):
    """Give a model the tensors of a checkpoint of any family. Raises UsageError."""
    weights = model.sanitize(tensors)
    pack(model, model.packed)
    model.load_weights(list(weights.items()), strict=True)


def refuse_damage(model: nn.Module):
    """Raise UsageError for numbers that are none, and for scales that make none of what they scale."""
    for name, value in tree_flatten(model.parameters()):
        if mx.issubdtype(value.dtype, mx.floating) and not mx.isfinite(value).all().item():
            raise UsageError(f"Tensor {name} holds values that are not finite; the checkpoint is damaged.")
    for path, module in model.named_modules():
        if getattr(module, "mode", "affine") == "affine":
            continue
        codes, scales = module.weight.view(mx.uint8), module.scales
        bad = (scales & 0x7F == 0x7F).any() if module.mode == "nvfp4" else (scales > LARGEST_SCALE).any()
        if module.mode == "mxfp8":
            bad = bad | (codes & 0x7F == 0x7F).any()
        if bad.item():
            raise UsageError(f"Tensor {path}.weight decodes to values that are not finite; the checkpoint is damaged.")


def cast(model: Model, dtype: mx.Dtype):
    """Give every float parameter ``dtype``, but float32 to those that may not leave it.

    Scales and biases of packed weights are widened at most: to round them would change the weights.
    """
    model.embed.type = dtype
    cast_parameters(model, dtype)


def cast_parameters(module: nn.Module, dtype: mx.Dtype):
    """``cast`` of a part of a model."""

    def one(path: str, value: mx.array) -> mx.array:
        if not mx.issubdtype(value.dtype, mx.floating):
            return value
        if path.endswith((".scales", ".biases")):
            return value.astype(dtype) if dtype == mx.float32 else value
        return value.astype(dtype if may_cast(path) else mx.float32)

    module.update(tree_map_with_path(one, module.parameters()))
