"""Attention: low-rank queries, one shared K=V head, a sink, window and compressed rows, grouped output (spec 6)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import norm, rope
from .compressor import OVERLAP_RATIO, Compressor, CompressorState
from .config import Config, Options
from .indexer import Indexer
from .norm import wide
from .quantization import KVQuant, Linear


def sink_attention(q: Tensor, keys: Tensor, mask: Tensor, sink: Tensor, scale: float) -> Tensor:
    """Softmax over keys and one sink that takes mass and gives no value (spec 6.5).

    q [B, S, H, d], keys = values [B, K, d], mask [B, S, K] true where seen, sink [H] (a raw logit) -> [B, S, H, d].
    """
    logits = torch.einsum("bshd,bkd->bshk", wide(q), wide(keys)) * scale
    logits = logits.masked_fill(~mask[:, :, None], -torch.inf)
    highest = logits.amax(-1, keepdim=True)  # the sink takes no part in the maximum
    mass = (logits - highest).exp()
    total = mass.sum(-1, keepdim=True) + (wide(sink)[:, None] - highest).exp()
    out = torch.einsum("bshk,bkd->bshd", wide(mass.to(q.dtype)), wide(keys))
    return (out / total).to(q.dtype)


@dataclass
class AttentionState:
    """What an incremental run keeps: the last W-1 window rows [B, <W, d] and the compressors' states."""

    window: Tensor | None = None
    compressor: CompressorState = field(default_factory=CompressorState)
    indexer: CompressorState = field(default_factory=CompressorState)


class Attention(nn.Module):
    """Attention of a layer with compression ratio 0, 4, or any other (spec 6)."""

    def __init__(self, config: Config, ratio: int, options: Options):
        super().__init__()
        self.config, self.ratio = config, ratio
        heads, dim = config.num_attention_heads, config.head_dim
        self.wq_a = Linear(config.hidden_size, config.q_lora_rank, options)
        self.q_norm = norm.RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.wq_b = Linear(config.q_lora_rank, heads * dim, options)
        self.wkv = Linear(config.hidden_size, dim, options)
        self.kv_norm = norm.RMSNorm(dim, config.rms_norm_eps)
        self.wo_a = Linear(heads * dim // config.o_groups, config.o_groups * config.o_lora_rank, options)
        self.wo_b = Linear(config.o_groups * config.o_lora_rank, config.hidden_size, options)
        self.attn_sink = nn.Parameter(torch.empty(heads))
        self.kv_quant = KVQuant(config, options)
        if ratio:
            self.compressor = Compressor(config, dim, ratio, KVQuant(config, options))
        if ratio == OVERLAP_RATIO:
            self.indexer = Indexer(config, ratio, options)

    def frequencies(self, x: Tensor) -> Tensor:
        """The layer's rotation table, in the wide type of x."""
        return rope.inverse_frequencies(self.config, self.ratio, wide(x).dtype)

    def queries(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, S, D] -> the normed latent qr [B, S, Rq] and the rotated queries q [B, S, H, d] (spec 6.2).

        The per-head norm has no weight and is evaluated entirely in x.dtype, as published.
        """
        qr = self.q_norm(self.wq_a(x))
        q = self.wq_b(qr).unflatten(-1, (self.config.num_attention_heads, self.config.head_dim))
        mean = wide(q.square()).mean(-1, keepdim=True).to(q.dtype)
        q = q * torch.rsqrt(mean + self.config.rms_norm_eps)
        return qr, rope.rotate(q, positions, self.frequencies(x))

    def window_kv(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, S, D] -> the rows that are both keys and values [B, S, d] (spec 6.3)."""
        return self.kv_quant(rope.rotate(self.kv_norm(self.wkv(x)), positions, self.frequencies(x)))

    def visibility(self, positions: Tensor, first_key: int, rows: Tensor | None, selected: Tensor | None) -> Tensor:
        """Which keys each query sees (spec 6.4): window keys from position `first_key` on, then compressed rows.

        rows [B, R, d] or None, selected [B, S, k] or None -> bool [B or 1, S, K].
        """
        keys = torch.arange(first_key, int(positions[-1]) + 1)
        behind = positions[:, None] - keys
        mask = ((behind >= 0) & (behind < self.config.sliding_window))[None]
        if rows is None:
            return mask
        count = rows.shape[1]
        if selected is None:
            seen = (torch.arange(count) < ((positions + 1) // self.ratio)[:, None])[None]
        else:
            slots = torch.zeros(*selected.shape[:2], count + 1, dtype=torch.bool)  # the last slot takes the -1s
            seen = slots.scatter_(2, selected.masked_fill(selected < 0, count), True)[..., :count]
        return torch.cat((mask.expand(len(seen), -1, -1), seen), dim=-1)

    def output(self, o: Tensor, positions: Tensor) -> Tensor:
        """o [B, S, H, d]: turn back at the query's position, project each group of heads, then all (spec 6.6). -> [B,
        S, D]."""
        o = rope.rotate(o, positions, self.frequencies(o), inverse=True)
        groups = self.config.o_groups
        o = o.flatten(-2).unflatten(-1, (groups, -1))
        weight = wide(self.wo_a.weight).unflatten(0, (groups, -1))
        return self.wo_b(torch.einsum("bsgi,goi->bsgo", wide(o), weight).to(o.dtype).flatten(-2))

    def forward(self, x: Tensor, start: int = 0, state: AttentionState | None = None) -> Tensor:
        """x [B, S, D] at positions start .. start+S-1 -> [B, S, D]; `state` carries an incremental run on."""
        state = state if state is not None else AttentionState()
        positions = torch.arange(start, start + x.shape[1])
        qr, q = self.queries(x, positions)
        keys = self.window_kv(x, positions)
        if state.window is not None:
            keys = torch.cat((state.window, keys), 1)
        state.window = keys[:, max(keys.shape[1] - self.config.sliding_window + 1, 0) :]
        rows = selected = None
        first_key = start + x.shape[1] - keys.shape[1]
        if self.ratio:
            frequencies = self.frequencies(x)
            rows = self.compressor(x, start, frequencies, state.compressor)
            if self.ratio == OVERLAP_RATIO:
                selected = self.indexer(x, qr, start, frequencies, state.indexer)
            keys = torch.cat((keys, rows), 1)
        mask = self.visibility(positions, first_key, rows, selected)
        o = sink_attention(q, keys, mask, self.attn_sink, self.config.head_dim**-0.5)
        return self.output(o, positions)
