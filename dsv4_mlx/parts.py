"""A checkpoint's blocks one at a time, for whoever cannot hold the model."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from . import norm
from .block import Block
from .checkpoint import parameters_of, reading_of, refuse_twins
from .config import ModelArgs
from .errors import UsageError, reason
from .hyper_connection import HyperHead
from .loading import cast_parameters, refuse_damage
from .mtp import MTPBlock
from .norm import RMSNorm
from .quantization import Embedding, Linear, pack
from .safetensors_folder import Tensors, args_of, read_config


class First(nn.Module):
    """What stands before the first block; names are the checkpoint's."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.count = args.hc_mult
        self.embed = Embedding(args)

    def __call__(self, ids: mx.array) -> mx.array:
        """Token ids [B, S] -> the streams before the first block [B, S, n, D]."""
        return mx.repeat(self.embed(ids)[:, :, None], self.count, axis=2)


class Last(nn.Module):
    """What stands after the last block; names are the checkpoint's."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.hc_head = HyperHead(args)
        self.norm = RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.head = Linear(args.hidden_size, args.vocab_size, args)

    def __call__(self, streams: mx.array) -> mx.array:
        """Final streams [B, S, n, D] -> float32 logits of every position [B, S, V]."""
        return self.head(norm.wide(self.norm(self.hc_head(streams))))


class Parts:
    """The parts of the model in a checkpoint folder, of any family: each is loaded when it is asked for, and held by
    whoever asked alone.

    ``dtype`` as in ``loading.load``. Raises UsageError.
    """

    def __init__(self, folder: str | Path, dtype: mx.Dtype | None = None):
        folder = Path(folder)
        self.args = args_of(folder, read_config(folder))
        self.dtype = dtype if dtype is not None else getattr(mx, self.args.torch_dtype)
        self.tensors = Tensors(folder)
        self.reading = reading_of(self.tensors.stored, self.args)
        refuse_twins(self.reading, self.tensors)

    def block(self, index: int) -> Block | MTPBlock:
        """Block ``index``; MTP block m is block num_hidden_layers + m."""
        depth = index - self.args.num_hidden_layers
        if depth < 0:
            return self._filled(Block(self.args, index), f"layers.{index}.")
        return self._filled(MTPBlock(self.args, depth), f"mtp.{depth}.")

    def first(self) -> First:
        """The embedding."""
        first = self._filled(First(self.args), "", ("embed.",))
        first.embed.type = self.dtype
        return first

    def last(self) -> Last:
        """The streams' last mixing, norm and head."""
        return self._filled(Last(self.args), "", ("hc_head_", "norm.", "head."))

    def _filled(self, module: nn.Module, prefix: str, names: tuple[str, ...] = ("",)) -> nn.Module:
        wanted = tuple(prefix + name for name in names)
        places = {name: at for name, at in self.reading.places.items() if name.startswith(wanted)}
        found, packed, stored = parameters_of(replace(self.reading, places=places), self.tensors, self.args)
        for path, one in module.named_modules():
            if hasattr(one, "stored"):
                one.stored = stored.get(prefix + path, "float")
        pack(module, {name.removeprefix(prefix): kind for name, kind in packed.items()})
        module.load_weights([(name.removeprefix(prefix), value) for name, value in found.items()], strict=True)
        cast_parameters(module, self.dtype)
        del found  # with the open files, so that one parameter's pieces are in memory at a time
        self.tensors.forget()
        try:  # MLX reads late, as soon as a value is looked at
            for _, value in tree_flatten(module.parameters()):
                mx.eval(value)
        except RuntimeError as error:
            raise UsageError(f"The tensors of {wanted[0]} cannot be read ({reason(error)}).") from error
        refuse_damage(module)
        return module
