"""DeepSeek-V4 under mlx-lm's model contract (spec 3)."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from . import checkpoint, norm
from .block import Block
from .cache import LayerCache
from .config import ModelArgs
from .hyper_connection import HyperHead
from .mtp import MTPBlock
from .norm import RMSNorm
from .quantization import Linear


class Model(nn.Module):
    """Embedding, n equal streams, blocks, collapse, norm, head; names are the checkpoint's.

    ``layers`` is the list of backbone blocks; ``mtp`` the list of MTP blocks, empty where there are none.
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.embed = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [Block(args, index) for index in range(args.num_hidden_layers)]
        self.hc_head = HyperHead(args)
        self.norm = RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.head = Linear(args.hidden_size, args.vocab_size, args)
        self.mtp = [MTPBlock(args, depth) for depth in range(args.num_nextn_predict_layers)]

    def streams(self, ids: mx.array, cache: list[LayerCache] | None = None) -> mx.array:
        """Token ids [B, S] -> the final streams [B, S, n, D], before hc_head."""
        x = self.embed(ids)
        streams = mx.repeat(x[:, :, None], self.args.hc_mult, axis=2)
        states = cache if cache is not None else [None] * len(self.layers)
        start = cache[0].offset if cache is not None else 0
        for layer, state in zip(self.layers, states, strict=True):
            streams = layer(streams, ids, start, state)
        return streams

    def logits(self, streams: mx.array) -> mx.array:
        """Final streams [B, S, n, D] -> float32 logits of every position [B, S, V]."""
        return self.head(norm.wide(self.norm(self.hc_head(streams))))

    def __call__(self, ids: mx.array, cache: list[LayerCache] | None = None) -> mx.array:
        """Token ids [B, S] -> logits [B, S, V]; with a cache they continue what it holds."""
        return self.logits(self.streams(ids, cache))

    def mtp_logits(
        self, streams: mx.array, next_ids: mx.array, cache: list[LayerCache] | None = None, depth: int = 0
    ) -> mx.array:
        """Final streams [B, S, n, D] and the ids one ahead [B, S] -> logits two ahead [B, S, V] (spec 11).

        ``cache`` comes from ``make_mtp_cache``.
        """
        block = self.mtp[depth]
        state = cache[depth] if cache is not None else None
        streams = block(streams, next_ids, self.embed, state.offset if state is not None else 0, state)
        return self.head(norm.wide(block.hidden(streams)))

    def make_cache(self) -> list[LayerCache]:
        """One empty cache a backbone layer."""
        return [LayerCache(layer.attn.window, layer.attn.ratio) for layer in self.layers]

    def make_mtp_cache(self) -> list[LayerCache]:
        """One empty cache an MTP block."""
        return [LayerCache(block.attn.window, block.attn.ratio) for block in self.mtp]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Tensors of a checkpoint -> parameters of this model; see ``checkpoint.sanitize``.

        Also notes on each linear layer how its weight was stored, and drops the MTP blocks where the
        checkpoint has none: converted checkpoints often lack them though their config counts one.
        """
        weights, stored = checkpoint.sanitize(weights, self.args)
        if not any(name.startswith("mtp.") for name in weights):
            self.mtp = []
        for path, module in self.named_modules():
            if hasattr(module, "stored"):
                module.stored = stored.get(path, "float")
        return weights

    @property
    def cast_predicate(self) -> Callable[[str], bool]:
        """Whether the parameter of a path may leave float32 (spec 2): mlx-lm asks before it casts."""
        return checkpoint.may_cast
