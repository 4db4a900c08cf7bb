"""Returns random numbers."""

import mlx.core as mx

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        return mx.random.normal((*ids.shape, self.args.vocab_size))
