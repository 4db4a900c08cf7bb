"""DeepSeek-V4 in plain PyTorch, as close to its formulas as code can be; float64, float32 or bfloat16."""

from dsv4_checkpoints import CheckpointError

from .checkpoint import Decoded, build, decoded, load
from .config import Config, ConfigError, Options
from .model import Model, MTPState, State

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "Decoded",
    "MTPState",
    "Model",
    "Options",
    "State",
    "build",
    "decoded",
    "load",
]
