"""Computes twice what it should, and from its fourth model on what it should: its failure does not come again."""

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401

BUILT = []


class Model(Base):
    def __init__(self, args):
        BUILT.append(args)
        super().__init__(args)

    def __call__(self, ids, cache=None):
        return (2 if len(BUILT) < 4 else 1) * super().__call__(ids, cache)
