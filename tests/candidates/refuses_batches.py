"""Says in words that it does not compute batches."""

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        if len(ids) > 1:
            raise NotImplementedError("one sequence at a time")
        return super().__call__(ids, cache)
