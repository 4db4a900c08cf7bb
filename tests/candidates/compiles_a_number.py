"""dsv4_mlx with a compiled function that reads a Python number: right as it is written, but mx.compile keeps the number
that it met first."""

import mlx.core as mx

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401

seen = {"tokens": 1}


@mx.compile
def scaled_back(x):
    return x / seen["tokens"]


class Model(Base):
    def __call__(self, ids, cache=None, **rest):
        seen["tokens"] = 1 + (cache[0].offset if cache else 0)
        return scaled_back(super().__call__(ids, cache, **rest) * seen["tokens"])
