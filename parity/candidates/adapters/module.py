"""Any dotted module with Model and ModelArgs or ModelConfig, driven by the contract of mlx-lm."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from . import Target
from .mlx_tree import MLXPort, put_first


class Port(MLXPort):
    """The module itself says nothing about a loader: Model, sanitize and strict load_weights are the contract."""

    def __init__(self, target: Target):
        super().__init__(target)
        if target.path:  # this file's package, also where another of its name is installed
            sys.path.insert(0, target.root)
        else:
            put_first(target.root)

    def start(self) -> type:
        found = getattr(importlib.import_module(self.target.module), "__file__", None)
        if self.target.path and Path(found or "").resolve() != Path(self.target.path):
            raise ImportError(f"{self.target.module} is {found} here, which is not the file that was named")
        return super().start()
