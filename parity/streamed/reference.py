"""The reference from a checkpoint folder, block by block: experts are decoded when a token chose them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_torch import Config, Options
from reference_torch.block import Block
from reference_torch.checkpoint import fill, parameter
from reference_torch.experts import Expert
from reference_torch.hyper_connection import HyperHead
from reference_torch.mtp import MTPBlock
from reference_torch.norm import RMSNorm, wide

from ..judging import oracle
from ..judging.rounding import OtherBlocks
from ..judging.taps import recording
from .source import Cached, Source
from .together import Run, run_together

# What of a block is judged besides its streams, by the module's path.
POINTS = {"attention": ("attn", ""), "experts": ("ffn", "")}
HEAD_ROWS = 8192  # rows of the output head that are decoded at once


def prefix_of(config: Config, index: int) -> str:
    """What a block's published names begin with; MTP block m is block num_hidden_layers + m."""
    depth = index - config.num_hidden_layers
    return f"layers.{index}." if depth < 0 else f"mtp.{depth}."


class StreamedBlock:
    """One block of the reference, its experts left in the files, in as many copies as there are runs of it."""

    def __init__(self, source: Source, index: int):
        self.source, self.index, self.options = source, index, Options()
        self.prefix = prefix_of(source.config, index)
        self.names = [name for name in source.names(self.prefix) if ".ffn.experts." not in name]
        self.filled: dict[torch.dtype, Block] = {}
        self.memory: dict[tuple[torch.dtype | None, str], Tensor] = {}

    def copy(self, dtype: torch.dtype) -> Block:
        """A block with parameters in `dtype`, which it shares with the others of this type."""
        config, depth = self.source.config, self.index - self.source.config.num_hidden_layers
        with torch.device("meta"):
            block = Block(config, self.index, self.options) if depth < 0 else MTPBlock(config, depth, self.options)
        block.ffn.experts = nn.ModuleList()
        if dtype not in self.filled:
            fill(block, self.source.reading, self.names, self.source, dtype, self.prefix)
            self.filled[dtype] = block
            return block
        known = dict(self.filled[dtype].named_modules())
        for path, module in block.named_modules():
            module._parameters |= known[path]._parameters
            if hasattr(module, "stored"):
                module.stored = known[path].stored
        return block

    def expert(self, index: int) -> Callable[[torch.dtype], Expert]:
        """A routed expert, decoded once, in whatever types it is asked for: rounded to the type, and kept wide, as
        each product wants it. Its memory becomes the next expert's."""
        config, reading = self.source.config, self.source.reading
        decoded = {}
        for leaf in ("w1", "w2", "w3"):
            name = f"{self.prefix}ffn.experts.{index}.{leaf}.weight"
            memory = self._memory(None, leaf, reading.slots[name].shape, torch.float32)
            decoded[leaf] = parameter(reading, name, self.source, torch.float32, out=memory)
        made: dict[torch.dtype, Expert] = {}

        def given(dtype: torch.dtype) -> Expert:
            if dtype not in made:
                with torch.device("meta"):
                    made[dtype] = Expert(config, self.options, config.swiglu_limit)
                for leaf, value in decoded.items():
                    getattr(made[dtype], leaf).weight = nn.Parameter(self._in(dtype, leaf, value), requires_grad=False)
            return made[dtype]

        return given

    def _in(self, dtype: torch.dtype, leaf: str, value: Tensor) -> Tensor:
        """A decoded matrix rounded to a type."""
        if dtype == value.dtype:
            return value
        rounded = self._memory(dtype, leaf, value.shape, torch.promote_types(dtype, torch.float32))
        return rounded.copy_(value.to(dtype))

    def _memory(self, use: torch.dtype | None, leaf: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if (use, leaf) not in self.memory:
            self.memory[use, leaf] = torch.empty(shape, dtype=dtype)
        return self.memory[use, leaf]


@dataclass(frozen=True)
class Asked:
    """One run of a block: in which type, on which streams [1, S, n, D], with which choices replayed; with `seed`, in
    another rounding, whose sums go one after the other where it is `sequential`."""

    dtype: torch.dtype
    streams: Tensor
    replay: dict[str, Tensor] = field(default_factory=dict)
    seed: int | None = None
    sequential: bool = False


def observations(
    streamed: StreamedBlock, asked: list[Asked], ids: Tensor, paths: dict[str, str], embedded: Tensor | None = None
) -> list[oracle.Observation]:
    """Runs of one block side by side on ids [1, S]; of an MTP block, ids one ahead and their embedding [1, S, D]."""
    runs = [run_of(streamed.copy(one.dtype), one, ids, paths, embedded, one.dtype) for one in asked]
    return run_together(runs, streamed.expert)


def run_of(
    block: Block, asked: Asked, ids: Tensor, paths: dict[str, str], embedded: Tensor | None, copy: Hashable
) -> Run:
    """One run of a block, which takes this copy of its experts."""
    given = () if embedded is None else (embedded.to(asked.dtype),)
    rounding = nullcontext() if asked.seed is None else OtherBlocks(asked.seed, asked.sequential)
    compute = partial(oracle.observe, _Side(block), partial(_taps, block, asked, ids, given), paths, asked.replay)
    return Run(block, compute, rounding, copy)


def _taps(block: Block, asked: Asked, ids: Tensor, given: tuple[Tensor, ...]) -> dict[str, Tensor]:
    with recording(block, POINTS) as record:
        streams = block(asked.streams.to(asked.dtype), ids, *given)
    found = {name: parts[0] for name, parts in record.items()} | {"streams": streams}
    return found | {"hidden": block.hidden(streams)} if given else found


class _Side:
    """What `oracle.observe` asks of a side."""

    def __init__(self, model: nn.Module):
        self.model = model

    def tensor(self, x: Tensor) -> Tensor:
        return x

    def integers(self, x: Tensor) -> Tensor:
        return x


def embedded(source: Source, ids: Tensor) -> Tensor:
    """The rows of the embedding for ids [S], float32 [S, D]."""
    kept, place = ids.unique(return_inverse=True)
    table = Cached(source)
    rows = [parameter(source.reading, "embed.weight", table, torch.float32, slice(i, i + 1)) for i in kept.tolist()]
    return torch.cat(rows)[place]


class Head:
    """The streams' last mixing, the norm before the head, and the head, of the backbone or in front of it those of an
    MTP block."""

    def __init__(self, source: Source, prefix: str, dtype: torch.dtype):
        self.source, self.dtype = source, dtype
        with torch.device("meta"):
            self.module = nn.Module()
            self.module.hc_head = HyperHead(source.config)
            self.module.norm = RMSNorm(source.config.hidden_size, source.config.rms_norm_eps)
        own = [f"{prefix}{name}" for name in ("norm.weight", "hc_head_fn", "hc_head_base", "hc_head_scale")]
        fill(self.module, source.reading, own, source, dtype, prefix)

    def hidden(self, streams: Tensor) -> Tensor:
        """Streams [B, S, n, D] -> what the output head reads [B, S, D]."""
        return self.module.norm(self.module.hc_head(streams))


@torch.no_grad()
def logits(source: Source, runs: list[tuple[Head, Tensor, OtherBlocks | None]]) -> list[Tensor]:
    """Of each run, a head, streams [B, S, n, D] in its type, and another rounding or None, the logits [B, S, V], wide.

    The output head is decoded once for all of them, a part of the vocabulary at a time.
    """
    table, parts, read = Cached(source), [[] for _ in runs], []
    for head, streams, rounding in runs:
        with rounding or nullcontext():
            read.append(wide(head.hidden(streams)))
    for start in range(0, source.config.vocab_size, HEAD_ROWS):
        rows = parameter(source.reading, "head.weight", table, torch.float32, slice(start, start + HEAD_ROWS))
        for found, x, (_, _, rounding) in zip(parts, read, runs, strict=True):
            with rounding or nullcontext():
                found.append(F.linear(x, rows.to(x.dtype)))
    return [torch.cat(found, -1) for found in parts]
