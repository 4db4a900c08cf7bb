"""dsv4_mlx whose hc_post mixes the streams by comb where it should mix by its transpose (D016)."""

from dsv4_mlx import Model as Base
from dsv4_mlx import (
    ModelArgs,  # noqa: F401
    norm,
)
from dsv4_mlx.hyper_connection import HyperConnection


def post(self, v, streams, post, comb):
    mixed = comb @ norm.wide(streams)
    return (post[..., None] * norm.wide(v)[..., None, :] + mixed).astype(streams.dtype)


HyperConnection.post = post


class Model(Base):
    pass
