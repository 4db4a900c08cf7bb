"""Config and tensors of a checkpoint folder; whatever is wrong with it becomes one sentence."""

import json
import stat
from pathlib import Path
from typing import Any

import mlx.core as mx

from .errors import UsageError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_JSON = 100_000_000  # bytes; the index of the published Flash, 69,187 tensors, has 6 MB


def read_config(folder: Path) -> dict[str, Any]:
    """The object in ``config.json``. Raises UsageError."""
    config = _read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UsageError(f"{folder / 'config.json'} holds a {type(config).__name__}; a config is a JSON object.")
    return config


def read_tensors(folder: Path) -> dict[str, mx.array]:
    """All tensors of ``model.safetensors``, or of the shards that the index lists, not read yet. Raises UsageError."""
    weights, first = {}, {}
    for shard in _shards(folder):
        for name, value in _load(folder / shard).items():
            if name in weights:
                raise UsageError(f"Tensor {name} is in both {first[name]} and {shard}; keep it in one of them.")
            weights[name], first[name] = value, shard
    return weights


def _shards(folder: Path) -> list[str]:
    if not _is_file(folder / INDEX):
        return [SINGLE]
    content = _read_json(folder / INDEX)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise UsageError(f"{folder / INDEX} has no weight_map that names a shard for each tensor.")
    for name, shard in listed.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UsageError(f"{INDEX} puts tensor {name} in {shard!r}, which is no safetensors file of the folder.")
    return sorted({*listed.values()})


def _load(path: Path) -> dict[str, mx.array]:
    if not _is_file(path):
        raise UsageError(f"The checkpoint has no {path.name}; {path} is no file.")
    try:
        return mx.load(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UsageError(f"{path} cannot be read as safetensors ({reason}).") from error


def _read_json(path: Path):
    if not _is_file(path):
        raise UsageError(f"{path} is no file; give the folder of a checkpoint.")
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UsageError(f"{path} is larger than any file of its name can be.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is not valid JSON ({error}).") from error


def _is_file(path: Path) -> bool:
    """A plain file, or a link to one: to read a pipe is to wait for ever."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False
