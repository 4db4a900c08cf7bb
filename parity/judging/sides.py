"""The two sides of a comparison behind one set of words, so that a pair is written once and runs on both."""

from __future__ import annotations

from functools import cached_property

import mlx.core as mx
import numpy as np
import torch
from torch import Tensor

import dsv4_mlx.cache
import dsv4_mlx.config
import dsv4_mlx.model
import dsv4_mlx.pool
import dsv4_mlx.quantization
import dsv4_mlx.rope
import reference_torch
import reference_torch.attention
import reference_torch.compressor
import reference_torch.model
import reference_torch.quantization
import reference_torch.rope
from dsv4_mlx.loading import cast, fill

from ..cases.strategies.weights import DTYPES

MLX_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}


class TorchSide:
    """`reference_torch` in one type: the exact run, the baseline and the null all come from here."""

    package = reference_torch

    def __init__(self, config: dict, options: dict, tensors: dict[str, Tensor] | None, dtype: str):
        self.raw, self.options, self.tensors, self.dtype = config, options, tensors, DTYPES[dtype]

    @cached_property
    def config(self) -> reference_torch.Config:
        return reference_torch.Config.from_dict(self.raw)

    @cached_property
    def decoded(self) -> reference_torch.Decoded:
        return reference_torch.decoded(self.config, self.tensors, self.dtype)

    @cached_property
    def model(self) -> reference_torch.Model:
        return self.decoded.model(reference_torch.Options(**self.options))

    def array(self, x: Tensor) -> Tensor:
        """Activations in the run's type."""
        return x.to(self.dtype)

    def wide_array(self, x: Tensor) -> Tensor:
        """Values that stay wide in every run."""
        return x.to(torch.promote_types(self.dtype, torch.float32))

    def integers(self, x: Tensor) -> Tensor:
        return x

    def stored(self, x: Tensor) -> Tensor:
        """A tensor exactly as a checkpoint stores it."""
        return x

    def tensor(self, x: Tensor) -> Tensor:
        """An output as a torch tensor in its own type."""
        return x

    def positions(self, start: int, stop: int) -> Tensor:
        return torch.arange(start, stop)

    def frequencies(self, ratio: int) -> Tensor:
        return reference_torch.rope.inverse_frequencies(
            self.config, ratio, torch.promote_types(self.dtype, torch.float32)
        )

    def compressor_state(self, ratio: int):
        return reference_torch.compressor.CompressorState()

    def attention_state(self, ratio: int):
        return reference_torch.attention.AttentionState()

    def indexer_state(self, ratio: int):
        return reference_torch.compressor.CompressorState()

    def model_state(self):
        return self.model.new_state()

    def mtp_state(self):
        return reference_torch.MTPState()

    def embed(self, ids: Tensor):
        """What an MTP block takes for the embedding of its ids."""
        return self.model.embed(ids)


class MLXSide:
    """`dsv4_mlx`, its weights loaded the way a user's are: raw names through `sanitize`."""

    package = dsv4_mlx

    def __init__(self, config: dict, options: dict, tensors: dict[str, Tensor] | None, dtype: str):
        self.raw, self.options, self.tensors, self.dtype = config, options, tensors, MLX_DTYPES[dtype]

    @cached_property
    def config(self) -> dsv4_mlx.config.ModelArgs:
        return dsv4_mlx.config.ModelArgs.from_dict(self.raw | self.options)

    @cached_property
    def model(self) -> dsv4_mlx.model.Model:
        model = dsv4_mlx.model.Model(self.config)
        fill(model, {name: to_mlx(value) for name, value in self.tensors.items()})
        cast(model, self.dtype)
        return model

    def array(self, x: Tensor) -> mx.array:
        return mx.array(x.float().numpy()).astype(self.dtype)

    def wide_array(self, x: Tensor) -> mx.array:
        return mx.array(x.float().numpy())

    def integers(self, x: Tensor) -> mx.array:
        return mx.array(x.numpy().astype(np.int32))

    def stored(self, x: Tensor) -> mx.array:
        return to_mlx(x)

    def tensor(self, x: mx.array) -> Tensor:
        return from_mlx(x)

    def positions(self, start: int, stop: int) -> mx.array:
        return mx.arange(start, stop)

    def frequencies(self, ratio: int) -> mx.array:
        return dsv4_mlx.rope.inverse_frequencies(self.config, ratio)

    def compressor_state(self, ratio: int):
        return dsv4_mlx.pool.Pool(ratio, overlap=ratio == 4)

    def attention_state(self, ratio: int):
        return dsv4_mlx.cache.LayerCache(self.config.sliding_window, ratio)

    def indexer_state(self, ratio: int):
        return dsv4_mlx.pool.Pool(ratio, overlap=True, axis=2)

    def model_state(self):
        return self.model.make_cache()

    def mtp_state(self):
        return self.model.make_mtp_cache()

    def embed(self, ids: mx.array):
        return self.model.embed


def to_mlx(x: Tensor) -> mx.array:
    """A stored tensor in MLX, bit for bit; fp8, e8m0 and packed bytes become uint8 as `mx.load` gives them."""
    if x.dtype in (torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.int8):
        return mx.array(x.view(torch.uint8).numpy())
    if x.dtype == torch.bfloat16:
        return mx.array(x.view(torch.int16).numpy()).view(mx.bfloat16)
    return mx.array(x.numpy())


def from_mlx(x: mx.array) -> Tensor:
    """An MLX array as a torch tensor, bit for bit (numpy has no bfloat16, so those bits travel as int16)."""
    if x.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(x.view(mx.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(x))
