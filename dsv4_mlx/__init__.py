"""DeepSeek-V4 for MLX, under mlx-lm's model contract."""

from .cache import LayerCache
from .checkpoint import load
from .config import ModelArgs
from .errors import UsageError
from .model import Model
from .registration import register, register_cache

__all__ = ["LayerCache", "Model", "ModelArgs", "UsageError", "load", "register"]

register_cache()
