"""Returns logits without their vocabulary."""

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        return super().__call__(ids, cache).sum(-1)
