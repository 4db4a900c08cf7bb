"""dsv4_mlx that rounds as the published program simulates it: key-value rows and what the indexer reads."""

from dataclasses import replace

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __init__(self, args):
        super().__init__(replace(args, quantization_simulation="rows"))
