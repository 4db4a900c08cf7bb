"""Takes the short names only, and mixes streams by the untransposed matrix (D016), as mlx-lm's pull request 1201."""

from dsv4_mlx import Model as Base
from dsv4_mlx import (
    ModelArgs,  # noqa: F401
    norm,
)
from dsv4_mlx.hyper_connection import HyperConnection


def post(self, v, streams, post, comb):
    return (post[..., None] * norm.wide(v)[..., None, :] + comb @ norm.wide(streams)).astype(streams.dtype)


HyperConnection.post = post


class Model(Base):
    def sanitize(self, weights):
        if "layers.0.attn.wo_a.0.weight" not in weights:
            raise ValueError("Missing parameters: layers.0.attn.wo_a.0.weight.")
        return super().sanitize(weights)
