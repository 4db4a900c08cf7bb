"""What a run keeps on disk after each stage, so that one that is killed goes on where it was and ends the same.

A folder with `run.json` (what the run is, which a later one must match), and for each stage that is done `NAME.json`
(its result) and `NAME.safetensors` (the streams after it). A stage counts once its JSON is there, which is written
last; each file is written under another name and renamed. Streams of stages before the last are deleted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import BadInput

RUN = "run.json"


class State:
    """The folder of one run. Raises BadInput where it cannot be used or belongs to another run."""

    def __init__(self, folder: Path, run: dict):
        self.folder, self.run = folder, run
        self.known: dict[str, dict] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            found = self._read(RUN)
            if found is None:
                if any(folder.iterdir()):
                    raise BadInput(f"{folder} holds other files; give --resume a new folder or that of an earlier run.")
                self._write(RUN, run)
            elif found != run:
                other = _difference(found, run)
                raise BadInput(f"{folder} belongs to another run ({other}); give --resume another folder.")
        except OSError as error:
            raise BadInput(f"{folder} cannot be used for --resume ({error.strerror}); give another folder.") from error

    def result(self, stage: str) -> dict | None:
        """What a stage found, None where it is still to be done."""
        if stage not in self.known and (found := self._read(f"{stage}.json")) is not None:
            self.known[stage] = found
        return self.known.get(stage)

    def streams(self, stage: str) -> dict[str, Tensor]:
        """The tensors after a stage that is done."""
        path = self.folder / f"{stage}.safetensors"
        try:
            # Where a tensor lies in memory decides the order in which sums over it are made; a file's lie anywhere.
            return {name: tensor.clone() for name, tensor in load_file(path).items()}
        except (OSError, SafetensorError) as error:
            raise BadInput(
                f"{path} of an earlier run cannot be read ({_line(error)}); delete {self.folder} and start again."
            ) from error

    def save(self, stage: str, result: dict, streams: dict[str, Tensor], before: str | None) -> None:
        """A stage is done; ``before`` is the one whose streams it read."""
        try:
            path = self.folder / f"{stage}.safetensors"
            partial = path.with_suffix(".partial")
            save_file({name: tensor.contiguous() for name, tensor in streams.items()}, partial)
            _rename(partial, path)
            self._write(f"{stage}.json", result)
            if before is not None:
                (self.folder / f"{before}.safetensors").unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            reason = "the disk is full" if full else _line(error)
            raise BadInput(
                f"{self.folder} cannot be written ({reason}); make room and start again: what is done is kept."
            ) from error
        self.known[stage] = result

    def _read(self, name: str) -> dict | None:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path} of an earlier run is damaged; delete {self.folder} and start again.") from error

    def _write(self, name: str, content: dict) -> None:
        partial = self.folder / f"{name}.partial"
        with partial.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.folder / name)

    def _sweep(self) -> None:
        """Remove what a run that was killed had not finished writing."""
        for path in self.folder.glob("*.partial"):
            path.unlink()


def _rename(partial: Path, path: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def _difference(found: object, run: dict) -> str:
    if not isinstance(found, dict):
        return "its run.json is none"
    names = [name for name in {**found, **run} if found.get(name) != run.get(name)]
    return f"another {', '.join(names)}"


def _line(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split())[:200].rstrip(".")


def tensor_hash(tensor: Tensor) -> str:
    """A short name of a tensor's values, for `run.json`."""
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
