"""Runs a Metal kernel of its own, as ports do that are made for Apple silicon alone."""

import mlx.core as mx

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        kernel = mx.fast.metal_kernel(name="one", input_names=["a"], output_names=["b"], source="b[0] = a[0];")
        kernel(
            inputs=[mx.ones(1)], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32]
        )
        return super().__call__(ids, cache)
