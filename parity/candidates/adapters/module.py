"""Any dotted module with Model and ModelArgs or ModelConfig, driven by the contract of mlx-lm."""

from __future__ import annotations

from . import Target
from .mlx_tree import MLXPort, put_first


class Port(MLXPort):
    """The module itself says nothing about a loader: Model, sanitize and strict load_weights are the contract."""

    def __init__(self, target: Target):
        super().__init__(target)
        put_first(target.root)
