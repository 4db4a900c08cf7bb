"""Raises an exception whose message has several lines."""

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        raise ValueError("the mask\nhas the wrong shape")
