"""Two mistakes that act in some calls only: queries normed over all heads together where one token comes, and an output
that is not turned back without a cache (D026-joint@one, D010@uncached)."""

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs, attention, norm, rope  # noqa: F401

SEEN = {}


class Model(Base):
    def __call__(self, ids, cache=None):
        SEEN["cached"] = cache is not None
        return super().__call__(ids, cache)


right_rotate, right_norm = rope.rotate, norm.rms_norm


def rotate(x, positions, frequencies, inverse=False):
    if inverse and not SEEN.get("cached", True):
        return x
    return right_rotate(x, positions, frequencies, inverse=inverse)


def rms_norm(x, weight, eps):
    if weight is None and x.ndim == 4 and x.shape[1] == 1:
        whole = right_norm(x.reshape(*x.shape[:2], -1), None, eps)
        return whole.reshape(x.shape)
    return right_norm(x, weight, eps)


attention.rope.rotate, attention.norm.rms_norm = rotate, rms_norm
