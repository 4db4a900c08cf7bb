"""A checkpoint folder whose tensors are read when they are asked for, into memory that goes with them.

Not through a mapping of the file: its pages would count as the process's own until something else needs them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsv4_checkpoints import CheckpointError, Settings, read
from dsv4_checkpoints.folder import AGAIN, ELEMENT_BYTES, read_names
from reference_torch.checkpoint import DTYPES
from reference_torch.config import Config, ConfigError, read_json

from ..errors import BadInput

TORCH = {name: dtype for dtype, name in DTYPES.items()}


class Source(Mapping):
    """The tensors of a folder by name, each as it is stored; config and reading. Raises BadInput for what is wrong with
    the folder; without `complain`, what is wrong with its tensors is kept in `complaints` instead."""

    def __init__(self, folder: Path, complain: bool = True):
        self.folder, self.complaints = folder, []
        try:
            self.config = Config.load(folder)
            self.raw = read_json(folder / "config.json")
            self.stored = read_names(folder)
            told = {} if complain else {"complain": lambda error: self.complaints.append(str(error))}
            self.reading = read(self.config, self.stored, Settings.of(self.raw), **told)
        except (CheckpointError, ConfigError) as error:
            raise BadInput(str(error)) from error
        if self.reading.mtp_blocks != self.config.num_nextn_predict_layers:
            ratios = self.config.compress_ratios[: self.config.num_hidden_layers + self.reading.mtp_blocks]
            self.config = replace(self.config, num_nextn_predict_layers=self.reading.mtp_blocks, compress_ratios=ratios)
        self.starts: dict[Path, tuple[int, dict]] = {}

    def __getitem__(self, name: str) -> Tensor:
        path, start, size = self.range(name)
        stored = self.stored[name]
        try:
            data = np.fromfile(path, np.uint8, size, offset=start)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}); {AGAIN}.") from error
        if len(data) < size:
            raise CheckpointError(f"{path} ends within tensor {name!r}; {AGAIN}.")
        return torch.from_numpy(data).view(TORCH[stored.dtype]).reshape(stored.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def range(self, name: str) -> tuple[Path, int, int]:
        """The file, the first byte and the number of bytes of a tensor."""
        stored = self.stored[name]
        if stored.path not in self.starts:
            with stored.path.open("rb") as file:  # the header has been checked
                length = int.from_bytes(file.read(8), "little")
                self.starts[stored.path] = 8 + length, json.loads(file.read(length))
        base, entries = self.starts[stored.path]
        return (
            stored.path,
            base + entries[name]["data_offsets"][0],
            math.prod(stored.shape) * ELEMENT_BYTES[stored.dtype],
        )

    def names(self, prefix: str) -> list[str]:
        """Published names of the parameters of a part."""
        return [name for name in self.reading.places if name.startswith(prefix)]

    def ranges(self, prefix: str) -> list[tuple[Path, int, int]]:
        """What of the files a part is read from, in the order in which it lies there."""
        parts = {
            at
            for name in self.names(prefix)
            for place in self.reading.places[name]
            for at in self.reading.parts(place).values()
        }
        return sorted(self.range(name) for name in parts)

    def refuse_twins(self) -> None:
        """Raise BadInput where two spellings of one tensor hold different values."""
        for twin in self.reading.twins:
            if not torch.equal(*(self[name].contiguous().view(torch.uint8) for name in twin)):
                raise BadInput(str(twin.refusal()))


class Cached(dict):
    """Tensors of a source that are read once, for as long as this is held."""

    def __init__(self, source: Source):
        super().__init__()
        self.source = source

    def __missing__(self, name: str) -> Tensor:
        self[name] = self.source[name]
        return self[name]
