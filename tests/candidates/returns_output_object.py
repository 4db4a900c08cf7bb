"""Takes a mask, insists on it, and returns an object with logits, as mlx-vlm does."""

from dataclasses import dataclass

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


@dataclass
class Output:
    logits: object


class Model(Base):
    def __call__(self, ids, mask, cache=None):
        return Output(super().__call__(ids, cache))
