"""Allocates and touches memory without end."""

import numpy as np

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        hoard = []
        while True:
            hoard.append(np.ones(4 << 20))
