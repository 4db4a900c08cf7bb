"""Computes twice what it should, and from its fifth model on ends its process: a second question meets that."""

import os

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401

BUILT = []


class Model(Base):
    def __init__(self, args):
        BUILT.append(args)
        if len(BUILT) > 4:
            os._exit(3)
        super().__init__(args)

    def __call__(self, ids, cache=None):
        return 2 * super().__call__(ids, cache)
