"""One model file outside a whole package, imported as if it lay in the installed mlx-lm, loaded by mlx-lm's loader."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path

from .mlx_lm import Port as MLXLMPort
from .mlx_tree import classes, without_torch


class Port(MLXLMPort):
    """Its relative imports mean files beside it where it lies in a folder mlx_lm/models, else mlx-lm's own first."""

    def start(self) -> type:
        with without_torch():
            importlib.import_module("mlx_lm.utils")
        models = importlib.import_module("mlx_lm.models")
        path = Path(self.target.path)
        beside = str(path.parent)
        own_tree = path.parent.name == "models" and path.parent.parent.name == "mlx_lm"
        installed = list(models.__path__)
        models.__path__ = [beside, *installed] if own_tree else [*installed, beside]
        name = "mlx_lm.models." + re.sub(r"\W", "_", path.stem)
        spec = importlib.util.spec_from_file_location(name, path)
        self.module = importlib.util.module_from_spec(spec)
        sys.modules[name] = self.module
        spec.loader.exec_module(self.module)
        return classes(self.module)[0]
