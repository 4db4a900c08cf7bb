"""dsv4_mlx from a checkpoint folder, block by block: a prompt in one call, then token by token on the warm cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import torch
from torch import Tensor

from dsv4_mlx.cache import LayerCache
from dsv4_mlx.errors import UsageError
from dsv4_mlx.mtp import MTPBlock
from dsv4_mlx.parts import Parts

from ..errors import BadInput
from ..judging import oracle
from ..judging.oracle import raising
from ..judging.sides import from_mlx
from ..judging.taps import recording
from .reference import POINTS

MLX = {torch.float32: mx.float32, torch.bfloat16: mx.bfloat16}


class Candidate:
    """The MLX model in parts. Raises BadInput where the folder cannot be used."""

    def __init__(self, folder: Path, dtype: torch.dtype):
        self.dtype = MLX[dtype]
        with refused():
            self.parts = Parts(folder, self.dtype)

    def block(self, index: int) -> MLXBlock:
        """One block, with its weights."""
        with refused():
            return MLXBlock(self.parts.block(index), self.dtype)

    def embedded(self, ids: Tensor) -> Tensor:
        """ids [B, S] -> the streams before the first block [B, S, n, D]. Raises CandidateRaised."""
        first = self._part(self.parts.first)
        return raising(lambda: from_mlx(first(mx.array(ids.numpy()))))

    def embedding(self):
        """What an MTP block takes for the embedding of its ids."""
        return self._part(self.parts.first).embed

    def logits(self, streams: list[Tensor]) -> list[Tensor]:
        """Of each streams [B, S, n, D], logits [B, S, V]. Raises CandidateRaised."""
        last = self._part(self.parts.last)
        return raising(lambda: [from_mlx(last(as_mlx(x, self.dtype))) for x in streams])

    def _part(self, load: Callable):
        with refused():
            return load()


class Rows:
    """Given rows of an embedding [1, S, D] for ids [1, S], in the run's type."""

    def __init__(self, ids: Tensor, rows: Tensor, dtype: torch.dtype):
        self.ids, first = ids[0].unique(return_inverse=True)
        place = torch.zeros_like(self.ids).scatter(0, first, torch.arange(len(first)))
        self.ids, self.rows = mx.array(self.ids.numpy()), as_mlx(rows[0, place], MLX[dtype])

    def __call__(self, ids: mx.array) -> mx.array:
        """The rows of ids [B, S] that are among the given ones."""
        return self.rows[mx.argmax(ids[..., None] == self.ids, axis=-1)]


def as_mlx(x: Tensor, dtype: mx.Dtype) -> mx.array:
    """Activations in the run's type."""
    return mx.array(x.float().numpy()).astype(dtype)


@contextmanager
def refused():
    """What the folder's reader refuses is bad input."""
    try:
        yield
    except UsageError as error:
        raise BadInput(str(error)) from error


class MLXBlock:
    """A block as `oracle.observe` asks for a side."""

    def __init__(self, block, dtype: mx.Dtype):
        self.model, self.dtype = block, dtype

    def tensor(self, x: mx.array) -> Tensor:
        return from_mlx(x)

    def integers(self, x: Tensor) -> mx.array:
        return mx.array(x.numpy())

    def observed(
        self, streams: Tensor, ids: Tensor, calls: tuple[int, ...], paths: dict[str, str], embed=None
    ) -> oracle.Observation:
        """streams [1, S, n, D], ids [1, S] (of an MTP block, those one ahead), fed in these calls. Raises
        CandidateRaised."""
        return oracle.observe_candidate(self, lambda: self._run(streams, ids, calls, embed), paths)

    def _run(self, streams: Tensor, ids: Tensor, calls: tuple[int, ...], embed) -> dict[str, Tensor]:
        x, tokens = as_mlx(streams, self.dtype), mx.array(ids.numpy().astype("int32"))
        state, start, found = LayerCache(self.model.attn.window, self.model.attn.ratio), 0, []
        given = (embed,) if isinstance(self.model, MTPBlock) else ()
        with recording(self.model, POINTS) as record:
            for count in calls:
                part = slice(start, start + count)
                found.append(self.model(x[:, part], tokens[:, part], *given, state.call(1, count), state))
                mx.eval(found[-1])
                start += count
        outputs = {name: mx.concatenate(parts, axis=1) for name, parts in record.items()}
        outputs["streams"] = mx.concatenate(found, axis=1)
        if given:
            outputs["hidden"] = self.model.hidden(outputs["streams"])
        return {name: from_mlx(value) for name, value in outputs.items()}
