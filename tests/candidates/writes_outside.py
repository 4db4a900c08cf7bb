"""Writes beside its own folder and swallows the refusal."""

import contextlib
from pathlib import Path

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        with contextlib.suppress(OSError):
            (Path(__file__).parent / "written.txt").write_text("here")
        return super().__call__(ids, cache)
