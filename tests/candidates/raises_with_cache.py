"""Raises whenever it is given a cache, which it says that it takes."""

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        if cache is not None:
            raise AttributeError("'list' object has no attribute 'offset'")
        return super().__call__(ids)
