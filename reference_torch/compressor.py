"""The compressor: every r tokens become one key-value row; at ratio 4 neighbouring windows overlap (spec 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import norm, rope
from .config import Config
from .norm import wide

OVERLAP_RATIO = 4


@dataclass
class CompressorState:
    """What an incremental run keeps: K and Z (ape added) of tokens whose block is not done with, and all rows so far.

    kv, gate [B, P, c*dim]: the P pending tokens, at ratio 4 led by the previous complete block. rows [B, R, dim].
    """

    kv: Tensor | None = None
    gate: Tensor | None = None
    rows: Tensor | None = None


class Compressor(nn.Module):
    """Softmax-gated pooling of r tokens to one row of `dim` channels (spec 7).

    `quant` is the rounding that the row gets last. wkv, wgate [c*dim, D] and ape [r, c*dim] are used wide; c is 2 at
    ratio 4: channels [0:dim) of a token go to the next block's row, channels [dim:2dim) to its own block's.
    """

    def __init__(self, config: Config, dim: int, ratio: int, quant: nn.Module):
        super().__init__()
        self.dim, self.ratio, self.quant = dim, ratio, quant
        self.overlap = ratio == OVERLAP_RATIO
        width = dim * (2 if self.overlap else 1)
        self.wkv, self.wgate = _Matrix(width, config.hidden_size), _Matrix(width, config.hidden_size)
        self.ape = nn.Parameter(torch.empty(ratio, width))
        self.norm = norm.RMSNorm(dim, config.rms_norm_eps)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """K = x wkv^T and Z = x wgate^T, both wide and without ape. [B, S, D] -> 2 of [B, S, c*dim]."""
        return F.linear(wide(x), wide(self.wkv.weight)), F.linear(wide(x), wide(self.wgate.weight))

    def pool(self, kv: Tensor, gate: Tensor) -> Tensor:
        """Per-channel softmax of the gates over a block's candidates, times K. [B, N*r, c*dim] -> [B, N, dim], wide.

        At ratio 4 the candidates are the previous block's first halves and the block's own second halves; the first
        block has no predecessor (Z = -inf, K = 0).
        """
        kv, gate = kv.unflatten(1, (-1, self.ratio)), gate.unflatten(1, (-1, self.ratio))  # (B, N, r, c*dim)
        if self.overlap:
            kv = torch.cat((_previous(kv[..., : self.dim], 0.0), kv[..., self.dim :]), dim=2)
            gate = torch.cat((_previous(gate[..., : self.dim], -torch.inf), gate[..., self.dim :]), dim=2)
        return (gate.softmax(2) * kv).sum(2)

    def forward(self, x: Tensor, start: int, frequencies: Tensor, state: CompressorState | None = None) -> Tensor:
        """All rows so far: x [B, S, D] are the tokens from position `start` on -> [B, R, dim] with R = (start+S) //
        r."""
        state = state if state is not None else CompressorState()
        positions = torch.arange(start, start + x.shape[1])
        kv, gate = self.project(x)
        gate = gate + wide(self.ape)[positions % self.ratio]
        if state.kv is not None:
            kv, gate = torch.cat((state.kv, kv), 1), torch.cat((state.gate, gate), 1)
        first_block = (start + x.shape[1] - kv.shape[1]) // self.ratio
        blocks = kv.shape[1] // self.ratio
        done = blocks * self.ratio
        rows = self.pool(kv[:, :done], gate[:, :done])
        if self.overlap and state.rows is not None and state.rows.shape[1] > first_block:
            rows, first_block = rows[:, 1:], first_block + 1  # the leading block is there for its first halves only
        rows = self.finish(rows.to(x.dtype), torch.arange(first_block, first_block + rows.shape[1]), frequencies)
        state.rows = rows if state.rows is None else torch.cat((state.rows, rows), 1)
        keep = max(done - self.ratio, 0) if self.overlap else done
        state.kv, state.gate = kv[:, keep:], gate[:, keep:]
        return state.rows

    def finish(self, rows: Tensor, blocks: Tensor, frequencies: Tensor) -> Tensor:
        """Norm, rotation at the position of the block's first token, rounding. rows [B, N, dim], blocks [N]."""
        return self.quant(rope.rotate(self.norm(rows), blocks * self.ratio, frequencies))


def _previous(blocks: Tensor, fill: float) -> Tensor:
    """Shift [B, N, r, dim] by one block; the first block's predecessor is `fill`."""
    return torch.cat((torch.full_like(blocks[:, :1], fill), blocks[:, :-1]), dim=1)


class _Matrix(nn.Module):
    def __init__(self, outputs: int, inputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
