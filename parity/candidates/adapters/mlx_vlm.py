"""mlx-vlm, installed or a checkout, by its own loader."""

from __future__ import annotations

import importlib
from pathlib import Path

from . import Target
from .mlx_tree import MLXPort, put_first


class Port(MLXPort):
    """A model package of mlx_vlm; its text model takes ids alone."""

    def __init__(self, target: Target):
        super().__init__(target)
        put_first(target.root)

    def start(self) -> type:
        importlib.import_module("mlx_vlm.utils")
        return super().start()

    def load(self, folder: Path) -> None:
        from mlx_vlm.utils import load_model

        self.model = load_model(folder, lazy=False)
