"""Calls sys.exit with a code of success."""

import sys

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        sys.exit(0)
