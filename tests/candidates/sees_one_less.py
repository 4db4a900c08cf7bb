"""dsv4_mlx with a window one key too short (X045)."""

from dataclasses import replace

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __init__(self, args):
        super().__init__(replace(args, sliding_window=args.sliding_window - 1))
