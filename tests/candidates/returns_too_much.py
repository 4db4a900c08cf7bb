"""Returns a hundred times more than was asked for."""

import mlx.core as mx

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        return mx.zeros((ids.shape[0], ids.shape[1], 2_000_000))
