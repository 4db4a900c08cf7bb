"""Computes twice what it should, and from its third model on ends its process: a harness that asks again meets that."""

import os

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401

BUILT = []


class Model(Base):
    def __init__(self, args):
        BUILT.append(args)
        if len(BUILT) > 2:
            os._exit(3)
        super().__init__(args)

    def __call__(self, ids, cache=None):
        return 2 * super().__call__(ids, cache)
