"""DeepSeek-V4 for MLX, under mlx-lm's model contract."""

from .cache import LayerCache
from .config import ModelArgs
from .errors import UsageError
from .generate import TokenStream, generate
from .loading import load
from .model import Model
from .registration import register, register_cache

__all__ = ["LayerCache", "Model", "ModelArgs", "TokenStream", "UsageError", "generate", "load", "register"]

register_cache()
