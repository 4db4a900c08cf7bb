"""Tensors from a folder of safetensors files, in their stored types. Pickle files are never opened."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from dsv4_checkpoints import CheckpointError
from dsv4_checkpoints.folder import AGAIN, read_header, read_names


def read_folder(folder: str | Path) -> dict[str, torch.Tensor]:
    """Return every tensor of the checkpoint in `folder`, in its stored dtype. Raises CheckpointError."""
    names_by_path = defaultdict(list)
    for name, stored in read_names(folder).items():
        names_by_path[stored.path].append(name)
    tensors = {}
    for path, names in names_by_path.items():
        tensors.update(_read_tensors(path, names))
    return tensors


def read_file(path: str | Path) -> dict[str, torch.Tensor]:
    """Return every tensor of one safetensors file, in its stored dtype. Raises CheckpointError."""
    path = Path(path)
    return _read_tensors(path, list(read_header(path)))


def _read_tensors(path: Path, names: list[str]) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} cannot be read by safetensors ({reason}); {AGAIN}.") from error
