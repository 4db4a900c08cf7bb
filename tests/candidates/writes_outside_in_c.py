"""Lets C++ code write beside its own folder and swallows the refusal."""

import contextlib
from pathlib import Path

import mlx.core as mx

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        with contextlib.suppress(RuntimeError):
            mx.save(str(Path(__file__).parent / "written.npy"), ids)
        return super().__call__(ids, cache)
