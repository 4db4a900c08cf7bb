"""The whole model, one shot or carried on by a state (spec 3)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import block, hyper_connection, mtp, norm
from .attention import AttentionState
from .config import Config, Options
from .norm import wide


@dataclass
class State:
    """What an incremental run keeps: tokens seen, and a state for each block (the MTP blocks count for themselves)."""

    layers: list[AttentionState]
    offset: int = 0


@dataclass
class MTPState:
    """What an incremental run of one MTP block keeps."""

    layer: AttentionState = field(default_factory=AttentionState)
    offset: int = 0


class Embedding(nn.Module):
    """weight [V, D]."""

    def __init__(self, config: Config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids]


class Head(nn.Module):
    """weight [V, D]; logits are wide (spec 2)."""

    def __init__(self, config: Config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(wide(x), wide(self.weight))


class Model(nn.Module):
    """DeepSeek-V4 from its formulas. Weights come from `checkpoint`; all positions' logits are returned."""

    def __init__(self, config: Config, options: Options | None = None):
        super().__init__()
        self.config, self.options = config, options or Options()
        with torch.device("meta"):  # shapes now, tensors from the checkpoint
            self.embed = Embedding(config)
            self.layers = nn.ModuleList(block.Block(config, i, self.options) for i in range(config.num_hidden_layers))
            self.norm = norm.RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.hc_head = hyper_connection.HyperHead(config)
            self.head = Head(config)
            self.mtp = nn.ModuleList(
                mtp.MTPBlock(config, i, self.options) for i in range(config.num_nextn_predict_layers)
            )

    def new_state(self) -> State:
        """An empty state for an incremental run."""
        return State([AttentionState() for _ in self.layers])

    def streams(self, ids: Tensor, state: State | None = None) -> Tensor:
        """ids [B, S] -> the residual streams after the last block [B, S, n, D]."""
        self.check_ids(ids)
        state = state if state is not None else self.new_state()
        x = self.embed(ids)[:, :, None].expand(-1, -1, self.config.hc_mult, -1)
        for layer, layer_state in zip(self.layers, state.layers, strict=True):
            x = layer(x, ids, state.offset, layer_state)
        state.offset += ids.shape[1]
        return x

    def logits(self, streams: Tensor) -> Tensor:
        """streams [B, S, n, D] -> [B, S, V], wide."""
        return self.head(self.norm(self.hc_head(streams)))

    def mtp_logits(self, streams: Tensor, next_ids: Tensor, state: MTPState | None = None, index: int = 0) -> Tensor:
        """MTP block `index` on final streams [B, S, n, D] and the ids of the tokens after them [B, S] -> [B, S, V]
        (spec 11)."""
        self.check_ids(next_ids)
        state = state if state is not None else MTPState()
        head = self.mtp[index]
        drafted = head(streams, next_ids, self.embed(next_ids), state.offset, state.layer)
        state.offset += next_ids.shape[1]
        return self.head(head.hidden(drafted))

    def forward(self, ids: Tensor, state: State | None = None) -> Tensor:
        """ids [B, S] -> logits [B, S, V], wide; `state` is read and updated."""
        return self.logits(self.streams(ids, state))

    def check_ids(self, ids: Tensor) -> None:
        """Raise ValueError for an empty batch or an id outside the vocabulary."""
        if ids.ndim != 2 or ids.numel() == 0:
            raise ValueError(
                f"token ids have shape {tuple(ids.shape)}; they need the shape (batch, tokens) and at least one token."
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self.config.vocab_size:
            raise ValueError(f"a token id is outside 0 .. {self.config.vocab_size - 1}; check the tokenizer.")
