"""dsv4_mlx whose hc_post mixes by comb (D016), in a file that does not import the names of its types."""

from dataclasses import dataclass

from dsv4_mlx import Model as Base
from dsv4_mlx import (
    ModelArgs,  # noqa: F401
    norm,
)
from dsv4_mlx.hyper_connection import HyperConnection

Streams = Any  # noqa: F821 - no annotation: Python 3.14 evaluates those when they are asked for


def post(self, v, streams, post, comb) -> Streams:
    mixed = comb @ norm.wide(streams)
    return (post[..., None] * norm.wide(v)[..., None, :] + mixed).astype(streams.dtype)


HyperConnection.post = post


@dataclass
class Notes:
    said: list = field(default_factory=list)  # noqa: F821, RUF009


Layers = Sequence[int]  # noqa: F821


class Model(Base):
    def __call__(self, ids, cache=None):
        assert Any  # noqa: F821 - what was supplied stays there
        return super().__call__(ids, cache)
