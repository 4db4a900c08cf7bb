"""Writes to every open file descriptor, the harness's pipe among them."""

import contextlib
import os

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        for descriptor in range(3, 64):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"\x00\xff{garbage\n")
        return super().__call__(ids, cache)
