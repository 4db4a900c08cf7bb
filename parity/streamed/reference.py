"""One block of the reference from a checkpoint folder: its matrices decoded, its experts one at a time as they are used.

The maths is `reference_torch`'s own; here is only what keeps it in the memory of one layer: experts that are decoded when
a token chose them and forgotten, and attention over a few queries at a time (which is what an incremental run does; that
both agree is the first check of every `parity run`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from reference_torch import Config, Options
from reference_torch.attention import Attention, AttentionState
from reference_torch.block import Block
from reference_torch.experts import Expert
from reference_torch.hyper_connection import HyperHead
from reference_torch.mtp import MTPBlock
from reference_torch.norm import RMSNorm
from reference_torch.quantization import Linear

from ..checkpoints.folder import Folder

QUERIES = 256  # whose scores over all keys are held at once
HEAD_ROWS = 8192  # rows of the output head that are decoded at once


class StreamedExperts(nn.Module):
    """The experts of one layer as the reference's MoE asks for them: `experts[index]`."""

    def __init__(self, folder: Folder, prefix: str, config: Config, options: Options, dtype: torch.dtype):
        super().__init__()
        self.folder, self.prefix, self.dtype = folder, prefix, dtype
        self.config, self.options = config, options

    def __getitem__(self, index: int) -> Expert:
        with torch.device("meta"):
            expert = Expert(self.config, self.options, self.config.swiglu_limit)
        for matrix in ("w1", "w2", "w3"):
            linear = getattr(expert, matrix)
            linear.weight = _parameter(self.folder.expert(self.prefix, index, matrix).to(self.dtype))
            linear.stored = self.folder.format(f"{self.prefix}.ffn.experts.{index}.{matrix}.weight").kind_of_input
        return expert


def load_block(folder: Folder, layer: int, options: Options, dtype: torch.dtype) -> Block:
    """Block ``layer`` of the backbone, or MTP block m as layer num_hidden_layers + m, with its weights in ``dtype``.

    dtype is float32 or float64: that of the weights alone; activations have their own.
    """
    config = folder.config
    depth = layer - config.num_hidden_layers
    with torch.device("meta"):
        block = MTPBlock(config, depth, options) if depth >= 0 else Block(config, layer, options)
    prefix = f"layers.{layer}" if depth < 0 else f"mtp.{depth}"
    block.ffn.experts = StreamedExperts(folder, prefix, config, options, dtype)
    fill(block, folder, prefix, dtype)
    return block


def fill(module: nn.Module, folder: Folder, prefix: str, dtype: torch.dtype) -> None:
    """Give every parameter of a module its tensor; raw names follow from the module's own."""
    modules = dict(module.named_modules())
    for path, _ in [*module.named_parameters()]:
        owner, _, leaf = path.rpartition(".")
        name = raw_name(f"{prefix}.{path}" if prefix else path)
        value = folder.tensor(name)
        modules[owner]._parameters[leaf] = _parameter(value if leaf == "tid2eid" else value.to(dtype))
        if isinstance(modules[owner], Linear):
            modules[owner].stored = folder.format(name).kind_of_input


def raw_name(path: str) -> str:
    """The published name of a parameter: `layers.0.hc_attn.fn` -> `layers.0.hc_attn_fn`."""
    from reference_torch.checkpoint import raw_name as published

    return published(path)


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


@contextmanager
def few_queries(attention: Attention) -> Iterator[None]:
    """The attention of a long sequence in calls of QUERIES tokens, carried on by a state."""
    whole = attention.forward

    def forward(x: Tensor, start: int = 0, state: AttentionState | None = None) -> Tensor:
        state = state if state is not None else AttentionState()
        parts = range(0, x.shape[1], QUERIES)
        return torch.cat([whole(x[:, i : i + QUERIES], start + i, state) for i in parts], dim=1)

    attention.forward = forward
    try:
        yield
    finally:
        del attention.forward


class Head:
    """hc_head, norm and output head: those of the backbone, or those of an MTP block in front of the shared head."""

    def __init__(self, folder: Folder, prefix: str, dtype: torch.dtype):
        config = folder.config
        self.folder, self.dtype = folder, dtype
        with torch.device("meta"):
            self.hc_head = HyperHead(config)
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        for name, module in (("hc_head", self.hc_head), ("norm", self.norm)):
            fill(module, folder, f"{prefix}.{name}" if prefix else name, dtype)

    def hidden(self, streams: Tensor) -> Tensor:
        """Streams [B, S, n, D] -> what the output head reads [B, S, D]."""
        return self.norm(self.hc_head(streams))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [B, S, D] -> [B, S, V], wide; a part of the vocabulary at a time."""
        wide = hidden.to(torch.promote_types(hidden.dtype, self.dtype))
        vocabulary = self.folder.config.vocab_size
        parts = []
        for start in range(0, vocabulary, HEAD_ROWS):
            rows = self.folder.rows("head.weight", start, min(start + HEAD_ROWS, vocabulary))
            parts.append(wide @ rows.to(wide.dtype).T)
        return torch.cat(parts, dim=-1)


def embed(folder: Folder, ids: Tensor) -> Tensor:
    """Rows of the embedding for ids [S] -> [S, D] float32; reads those rows alone."""
    rows = {index: folder.rows("embed.weight", index, index + 1)[0] for index in ids.unique().tolist()}
    return torch.stack([rows[index] for index in ids.tolist()])
