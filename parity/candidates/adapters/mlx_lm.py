"""mlx-lm, installed or a checkout, by its own loader."""

from __future__ import annotations

import importlib
from pathlib import Path

from . import Target
from .mlx_tree import MLXPort, classes, put_first, without_torch


class Port(MLXPort):
    """A model file of a whole mlx_lm package."""

    def __init__(self, target: Target):
        super().__init__(target)
        put_first(target.root)

    def start(self) -> type:
        with without_torch():  # the package brings transformers
            importlib.import_module("mlx_lm.utils")
        return super().start()

    def load(self, folder: Path) -> None:
        from mlx_lm.utils import load_model

        # The file that was named, also where the loader's own table leads to another one.
        self.model, _ = load_model(
            folder, lazy=False, strict=True, get_model_classes=lambda config: classes(self.module)
        )
