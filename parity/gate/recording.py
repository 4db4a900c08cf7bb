"""All that a candidate gave while it was judged, as a folder: what answers for it later, without the port.

    DIR/recording.json        who was judged, and how; each question with its answers: problems, names of arrays
    DIR/arrays.safetensors    every array once, float32, named by the hash of its shape and bytes

A question is found again by what was asked: the hash of the checkpoint (config and tensors), the hash of the ids, the
schedule, the calls. So a probe that has changed since finds no answer rather than a wrong one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ..candidates import told
from ..candidates.adapters import RECORDING as MANIFEST
from ..candidates.adapters.problems import CandidateProblem, MissingImports
from ..candidates.process import Process
from ..candidates.surroundings import can_compile
from ..errors import BadInput
from ..results import plain
from .results import GateReport

SCHEMA = "dsv4-parity/recording/1"
ARRAYS = "arrays.safetensors"
NAMES = "names"  # the folder in which families of names are tried


class Recorder:
    """A candidate's process, with all that it answers kept, and the notes on names that were supplied to it."""

    def __init__(self, engine: Process, mended: Sequence[str] = ()):
        self.engine, self.mended = engine, mended
        self.start: list[dict] = []
        self.probes: dict[str, list[str]] = {}  # a checkpoint's hash: the names of the folders that it was loaded from
        self.tried: list[dict] = []  # what became of the families of names, in order
        self.asked: dict[str, list[dict]] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.checkpoint, self.compiling = "", False

    @property
    def dtype(self) -> str:
        return self.engine.dtype

    @property
    def supplied(self) -> list[tuple[str, str]]:
        return self.engine.supplied

    @property
    def facts(self) -> dict[str, object]:
        return self.engine.facts

    def __enter__(self) -> Recorder:
        facts = lambda engine: {"facts": {name: engine.facts.get(name) for name in ("file", "line", "versions")}}  # noqa: E731
        kept(self.start, self.engine.__enter__, facts)
        return self

    def __exit__(self, *exception) -> None:
        self.engine.__exit__(*exception)

    def load(self, folder: Path) -> None:
        """As Process.load."""
        self.checkpoint = checkpoint_hash(folder)
        labels = self.probes.setdefault(self.checkpoint, [])
        if folder.name not in labels:
            labels.append(folder.name)
        try:
            self._keep(question("load", self.checkpoint), lambda: self.engine.load(folder), lambda nothing: {})
        finally:
            if folder.name == NAMES:
                self.tried += self.asked.get(question("load", self.checkpoint), [])[-1:]

    def run(self, schedule: str, ids, calls: Sequence[int], cached: bool) -> np.ndarray:
        """As Process.run."""
        return self._logits("run", schedule, ids, calls, cached)

    def mtp(self, schedule: str, ids, calls: Sequence[int], cached: bool) -> np.ndarray:
        """As Process.mtp."""
        return self._logits("mtp", schedule, ids, calls, cached)

    def lives(self, asked: dict, limits: dict) -> told.Lives:
        """As Process.lives. The limits follow from the checkpoint and from what was answered before."""
        given = lambda lives: dataclasses.asdict(lives) | {"ratio": repr(lives.ratio)}  # noqa: E731 # JSON has no infinity
        return self._keep(question_of(asked, self.checkpoint), lambda: self.engine.lives(asked, limits), given)

    def taps(self, ids) -> list[dict[str, object]]:
        """As Process.taps."""
        given = lambda taps: {"taps": [[tap["path"], tap["kind"], self._array(tap["array"])] for tap in taps]}  # noqa: E731
        return self._keep(question("taps", self.checkpoint, "", [hash_of(ids)]), lambda: self.engine.taps(ids), given)

    def lines(self, folder: Path, run: Callable, *asked) -> told.Watched:
        """As Process.lines. What was found in it is kept, as part of the report."""
        return self.engine.lines(folder, getattr(self.engine, run.__name__), *asked)

    @contextlib.contextmanager
    def compiled(self) -> Iterator[None]:
        """As Process.compiled."""
        inner = self.engine.compiled()
        self._keep(question("compile", self.checkpoint), inner.__enter__, lambda nothing: {})
        self.compiling = True
        try:
            yield
        finally:
            self.compiling = False
            off = question("stop compiling", self.checkpoint)
            self._keep(off, lambda: inner.__exit__(None, None, None), lambda nothing: {})

    def _logits(self, do: str, schedule: str, ids, calls: Sequence[int], cached: bool) -> np.ndarray:
        key = question(do, self.checkpoint, schedule, [hash_of(ids), [*calls], cached], self.compiling)
        given = lambda logits: {"logits": self._array(logits), "dtype": self.engine.dtype}  # noqa: E731
        return self._keep(key, lambda: getattr(self.engine, do)(schedule, ids, calls, cached), given)

    def _keep(self, key: str, doing: Callable, told_as: Callable[[object], dict]):
        return kept(self.asked.setdefault(key, []), doing, told_as)

    def _array(self, array: np.ndarray) -> str:
        name = hash_of(array)
        self.arrays[name] = np.array(array, order="C")  # the file's writer takes bytes as they lie
        return name

    def write(self, folder: Path, report: GateReport, settings: dict) -> None:
        """The recording as a folder, in whole or not at all; `settings` are those of Player. Raises BadInput where it
        cannot be written."""
        environment = {name: report.environment.get(name) for name in ("libraries", "mlx_device")}
        document = {
            "schema": SCHEMA,
            "candidate": {"name": report.candidate.name, "kind": report.candidate.kind},
            **settings,
            "environment": environment,
            "compiles": can_compile(),
            "mended": [*self.mended],
            "lines": plain(report.lines),
            "start": self.start,
            "probes": self.probes,
            "names_tried": self.tried,
            "asked": [json.loads(key) | {"given": given} for key, given in self.asked.items()],
        }
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            temporary.mkdir()
            (temporary / MANIFEST).write_text(json.dumps(document) + "\n", encoding="ascii")
            (temporary / ARRAYS).write_bytes(save(self.arrays))  # readable for whom the other file is
            temporary.rename(folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise BadInput(f"{folder} cannot be written ({error.strerror}); give --record another folder.") from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def kept(given: list[dict], doing: Callable, told_as: Callable[[object], dict]):
    """What `doing` gives, or the problem that it raises, once it stands in the list."""
    try:
        value = doing()
    except CandidateProblem as problem:
        names = {"names": problem.names} if isinstance(problem, MissingImports) else {}
        given.append({"problem": type(problem).__name__, "sentence": str(problem)} | names)
        raise
    given.append(told_as(value))
    return value


def question(do: str, checkpoint: str, schedule: str = "", of: Sequence = (), compiled: bool = False) -> str:
    """What is asked, as text that is equal where the same is asked again."""
    asked = {"do": do, "checkpoint": checkpoint, "schedule": schedule, "of": [*of], "compiled": compiled}
    return json.dumps(asked, default=int)  # numpy's integers


def question_of(asked: dict, checkpoint: str) -> str:
    """A request for lives as a question."""
    return question(asked["do"], checkpoint, "", [value for name, value in asked.items() if name != "do"])


def hash_of(array) -> str:
    """Of shape and bytes; ids are int32 wherever they come from."""
    array = np.asarray(array)
    array = array if array.dtype == np.float32 else array.astype(np.int32)
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()


def checkpoint_hash(folder: Path) -> str:
    """Of config and tensors, in whatever order and in however many files they lie."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                content = hashlib.sha256(data[start + first : start + last]).hexdigest()
                tensors[name] = entry["dtype"], entry["shape"], content
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps([config, tensors], sort_keys=True).encode()).hexdigest()
