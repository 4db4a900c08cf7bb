"""The model of a checkpoint folder, with its weights."""

from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from .checkpoint import may_cast
from .config import ModelArgs
from .errors import UsageError
from .model import Model
from .safetensors_folder import read_config, read_tensors


def load(folder: str | Path, dtype: mx.Dtype | None = None, **options) -> Model:
    """The model of a checkpoint folder, with its weights.

    ``dtype`` is float32 (all parameters), bfloat16 or float16 (all but those that ``may_cast`` keeps), or
    None for the config's torch_dtype. ``options`` replace keys of the config: ``shared_expert_clamp=False``.
    Raises UsageError for what the folder holds, ValueError for what fits no model of this config.
    """
    folder = Path(folder)
    config = read_config(folder)
    _refuse_quantized(config)
    unknown = sorted(set(options) - set(ModelArgs.__dataclass_fields__))
    if unknown:
        raise ValueError(f"There is no option {', '.join(unknown)}.")
    args = ModelArgs.from_dict(config | options)
    model = Model(args)
    weights = model.sanitize(read_tensors(folder))
    _check_fits(weights, dict(tree_flatten(model.parameters())))
    model.load_weights(list(weights.items()), strict=True)
    cast(model, dtype if dtype is not None else getattr(mx, args.torch_dtype))
    try:
        mx.eval(model.parameters())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UsageError(f"The tensors in {folder} cannot be read ({reason}).") from error
    for name, value in tree_flatten(model.parameters()):
        if mx.issubdtype(value.dtype, mx.floating) and not mx.isfinite(value).all().item():
            raise UsageError(f"Tensor {name} holds values that are not finite; the checkpoint is damaged.")
    return model


def _check_fits(weights: dict[str, mx.array], parameters: dict[str, mx.array]):
    """Raise UsageError, in one sentence, where ``load_weights`` would list all names."""
    for names, what in (
        (weights.keys() - parameters.keys(), "belongs to no part of this model"),
        (parameters.keys() - weights.keys(), "is missing"),
    ):
        if names:
            others = f", as for {len(names) - 1} others" * (len(names) > 1)
            raise UsageError(f"Tensor {min(names)} {what}{others}: the config does not fit the checkpoint.")
    for name, value in parameters.items():
        if weights[name].shape != value.shape:
            raise UsageError(f"Tensor {name} has shape {weights[name].shape}; the config asks for {value.shape}.")


def _refuse_quantized(config: dict):
    """Of a conversion only mlx-lm's own loader knows how to build the layers."""
    how = config.get("quantization")
    if isinstance(how, dict):
        bits = f"{how['bits']} bits" if "bits" in how else "its own formats"
        raise UsageError(
            f"The folder is a quantised conversion ({bits}), which this function does not read; give the published "
            "checkpoint, or a conversion in floating point."
        )


def cast(model: Model, dtype: mx.Dtype):
    """Give every float parameter ``dtype``, but float32 to those that may not leave it."""

    def one(path: str, value: mx.array) -> mx.array:
        if not mx.issubdtype(value.dtype, mx.floating):
            return value
        return value.astype(dtype if may_cast(path) else mx.float32)

    model.update(tree_map_with_path(one, model.parameters()))
