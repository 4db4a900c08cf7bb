"""Starts another program."""

import subprocess

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        subprocess.run(["sh", "-c", "true"], check=False)
        return super().__call__(ids, cache)
