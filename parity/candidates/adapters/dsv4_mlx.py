"""This project's own port, loaded by its own loader, with its MTP block."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

import mlx.core as mx
import numpy as np

from . import Target
from .mlx_tree import MLXPort, joined, put_first
from .stored import all_float32


class Port(MLXPort):
    """dsv4_mlx."""

    mtp_offered = True

    def __init__(self, target: Target):
        super().__init__(target)
        put_first(target.root)

    def start(self) -> type:
        skip_package_init("mlx_lm")
        import dsv4_mlx

        self.module = dsv4_mlx
        return dsv4_mlx.Model

    def load(self, folder: Path) -> None:
        self.model = self.module.load(folder, mx.float32 if all_float32(folder) else None)

    def mtp(self, ids: np.ndarray, calls: Sequence[int], cached: bool) -> tuple[np.ndarray, str]:
        ids = mx.array(ids)
        cache = self.model.make_cache() if cached else None
        mtp_cache = self.model.make_mtp_cache() if cached else None
        outputs, start = [], 0
        for index, tokens in enumerate(calls):
            stop = start + tokens
            with self.around(index):
                streams = self.model.streams(ids[:, start:stop], cache)
                outputs.append(self.model.mtp_logits(streams, ids[:, start + 1 : stop + 1], mtp_cache))
            mx.eval(outputs[-1])
            start = stop
        return joined(outputs)


def skip_package_init(name: str) -> None:
    """Let submodules of a package be imported without its __init__: mlx_lm's brings transformers and torch, seconds
    that nothing here needs."""
    if name in sys.modules:
        return
    spec = PathFinder.find_spec(name)
    package = types.ModuleType(name)
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations)
    sys.modules[name] = package
