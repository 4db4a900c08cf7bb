"""Config and tensors of a checkpoint folder; whatever is wrong with it becomes one sentence."""

import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from dsv4_checkpoints import CheckpointError
from dsv4_checkpoints.folder import read_names

from .config import ModelArgs
from .errors import UsageError, as_usage_error, reason

LARGEST_JSON = 100_000_000  # bytes; the index of the published Flash, 69,187 tensors, has 6 MB


def read_config(folder: Path) -> dict[str, Any]:
    """The object in ``config.json``. Raises UsageError."""
    config = _read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UsageError(f"{folder / 'config.json'} holds a {type(config).__name__}; a config is a JSON object.")
    return config


def args_of(folder: Path, config: dict[str, Any]) -> ModelArgs:
    """The args that a folder's config describes. Raises UsageError."""
    try:
        return ModelArgs.from_dict(config)
    except ValueError as error:
        raise UsageError(f"{folder / 'config.json'} is the config of no DeepSeek-V4: {error}") from error


class Tensors(Mapping):
    """All tensors of a folder's safetensors files by name; each file is opened when one of its tensors is asked for.

    ``stored`` is what the headers say, which have been checked. Raises UsageError.
    """

    def __init__(self, folder: Path):
        try:
            self.stored = read_names(folder)
        except CheckpointError as error:
            raise as_usage_error(error) from error
        self._open: dict[Path, dict[str, mx.array]] = {}

    def __getitem__(self, name: str) -> mx.array:
        path = self.stored[name].path
        if path not in self._open:
            self._open[path] = _load(path)
        return self._open[path][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def forget(self):
        """Close the files, so that what was read of them can leave memory."""
        self._open.clear()


def _load(path: Path) -> dict[str, mx.array]:
    try:
        return mx.load(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise UsageError(f"{path} cannot be read as safetensors ({reason(error)}).") from error


def _read_json(path: Path):
    if not _is_file(path):
        raise UsageError(f"{path} is no file; give the folder of a checkpoint.")
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UsageError(f"{path} is larger than any file of its name can be.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({reason(error)}).") from error
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
