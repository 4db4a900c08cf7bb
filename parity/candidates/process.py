"""A candidate in a process of its own, with limits on time and memory; whatever it does there is one of the problems.

    with Process(resolve("dsv4_mlx"), scratch, timeout=60, memory=8) as process:
        process.load(folder)
        logits = process.run("one shot", ids, [ids.shape[1]], cached=False)

Each problem is a `CandidateProblem` with one sentence. After one that ends the process, the next request starts a new
one and loads the last folder again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from . import mending, surroundings, told, untrusted, usage
from .adapters import Target
from .adapters.problems import (
    AteMemory,
    CandidateProblem,
    Died,
    Hung,
    LacksName,
    MissingImports,
    NotOffered,
    Raised,
    WroteOutside,
)

__all__ = [
    "AteMemory",
    "CandidateProblem",
    "Died",
    "Hung",
    "MissingImports",
    "NotOffered",
    "Process",
    "Raised",
    "WroteOutside",
]

LONGEST_ANSWER = 1 << 20  # bytes
WAITING = 4
COMPILING = 5  # times as long as usual: the first call runs a compiler for each kernel
SLACK = 64 << 20  # bytes that a file of logits may have beyond what was asked: a wrong shape is judged, not refused
MOST_TAPS, MOST_WATCHED = 100_000, 1 << 31  # bytes of what its lines computed
FOLDER_GONE = "The candidate took away the folder that its process works in."
UNREADABLE = "The candidate's process answered nothing that can be read {doing}."


class Process:
    """Runs one candidate; `scratch` is a folder that the caller owns, `memory` is GiB.

    `timeout` is how many seconds of processor time a request may take: it does not matter what else the machine does.
    A candidate that waits instead of computing is ended after `WAITING` times as many seconds on the clock.

    `facts` are what the port told at its start: kind, class, file, line, versions, mtp, taps. `dtype` is that of the
    last logits before they became float32.

    With `mended`, names of `typing` and the like that its files lack are supplied; it is told each in a sentence, and
    `supplied` holds (file, name).
    """

    def __init__(
        self,
        target: Target,
        scratch: Path,
        timeout: float,
        memory: float,
        mended: Callable[[str], None] | None = None,
    ):
        self.target, self.timeout, self.memory = target, timeout, int(memory * told.GIB)
        self.mended, self.supplied = mended, []
        self.facts: dict[str, object] = {}
        self.dtype = ""
        self.home = Path(tempfile.mkdtemp(prefix="candidate-", dir=scratch))
        self.work = self.home / "work"  # the only folder that the candidate may change, or take away: one a process
        self.given = self.home / "given"
        self.numbers = itertools.count()
        self.child: subprocess.Popen | None = None
        self.folder: Path | None = None
        self.vocabulary = 0

    def __enter__(self) -> Process:
        self.given.mkdir()
        self._start()
        return self

    def __exit__(self, *exception) -> None:
        self._end()

    def load(self, folder: Path) -> None:
        """Build the model of a checkpoint folder. The port gets a copy: some edit the files that they read."""
        self.folder, self.vocabulary = None, 0
        if self.child is None:
            self._start()
        name = f"checkpoint-{next(self.numbers)}"
        copy = shutil.copytree(folder, self.home / name)
        try:
            copy = copy.rename(self.work / name)
        except OSError as error:
            shutil.rmtree(copy, ignore_errors=True)
            self._end()
            raise Died(FOLDER_GONE) from error
        try:
            self._ask({"do": "load", "folder": str(copy)}, "while loading the checkpoint")
        finally:
            shutil.rmtree(copy, ignore_errors=True)
        self.vocabulary = json.loads((Path(folder) / "config.json").read_text()).get("vocab_size", 0)
        self.folder = Path(folder)

    def run(self, schedule: str, ids, calls: Sequence[int], cached: bool) -> np.ndarray:
        """Logits of ids [B, T], fed in these calls to one fresh cache or, in one call, to none: float32, whatever its
        shape."""
        return self._logits("run", schedule, ids, calls, cached)

    def mtp(self, schedule: str, ids, calls: Sequence[int], cached: bool) -> np.ndarray:
        """Logits two ahead of the first MTP block, of ids [B, T + 1] where the calls have T tokens."""
        return self._logits("mtp", schedule, ids, calls, cached)

    def lives(self, asked: dict, limits: dict) -> told.Lives:
        """What a request of the worker, `lives` or `serve`, finds in lives of the port's caches; limits: the first
        fields of `lives.limits.Limits`, by name."""
        self._ready()
        doing = "in a random life of its caches" if asked["do"] == "lives" else "while mlx-lm drove it"
        answer = self._ask(asked | {"vocabulary": self.vocabulary, "limits": limits}, doing)
        try:
            return told.lives(answer)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise self._unreadable(doing) from error

    def taps(self, ids) -> list[dict[str, object]]:
        """Of a one-shot run of ids [B, T]: path, kind (its class) and array of each module's output, in order."""
        self._ready()
        request = {"do": "taps", "ids": str(self._write(ids))}
        return self._recorded(request, "while its modules were recorded", self._taps)

    def lines(self, folder: Path, run: Callable, *asked) -> told.Watched:
        """What the port's own lines compute while it loads a checkpoint and runs; `run` is `run` or `mtp`."""
        self._ready()
        self._ask({"do": "watch_lines"}, "before its lines were watched")
        self.load(folder)
        run(*asked)
        values = lambda out: self._array(out / "values.npy", MOST_WATCHED)  # noqa: E731
        read = lambda index, out: told.watched(index, values(out))  # noqa: E731
        return self._recorded({"do": "lines"}, "while its lines were watched", read)

    def _taps(self, index: list, out: Path) -> list[dict[str, object]]:
        array = lambda one: self._array(out / one["file"], SLACK)  # noqa: E731
        return [{"path": str(one["path"]), "kind": str(one["class"]), "array": array(one)} for one in index[:MOST_TAPS]]

    def _recorded(self, request: dict, doing: str, read: Callable):
        """What `read` makes of the index and the folder that the candidate's process has written."""
        out = self._place(request["do"])
        self._ask(request | {"out": str(out)}, doing)
        try:
            return read(json.loads(untrusted.content(out / "index.json", self.work, SLACK)), out)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
            raise self._unreadable(doing) from error
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def _logits(self, do: str, schedule: str, ids, calls: Sequence[int], cached: bool) -> np.ndarray:
        self._ready()
        given, out = self._write(ids), self._place("logits.npy")
        doing = f"in the schedule '{schedule}'"
        request = {"do": do, "schedule": schedule, "ids": str(given), "calls": list(calls), "cached": cached}
        answer = self._ask(request | {"out": str(out)}, doing)
        try:
            self.dtype = str(answer["dtype"])
            return self._array(out, 4 * int(np.prod(np.shape(ids))) * self.vocabulary + SLACK)
        except (KeyError, ValueError) as error:
            raise self._unreadable(doing) from error
        finally:
            given.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                out.unlink(missing_ok=True)

    # --- the process ---------------------------------------------------------------------------------------------

    def _start(self) -> None:
        while True:
            try:
                return self._import()
            except LacksName as problem:
                found, source = (problem.file, problem.name), mending.source_of(problem.name)
                if self.mended is None:
                    hint = f"--mend-imports would supply it from {source} and go on"
                    raise Raised(f"{str(problem).rstrip('.')}; {hint}.") from problem
                if found in self.supplied or len(self.supplied) == mending.MOST:
                    raise
                self.supplied.append(found)
                file = "The file" if problem.file == self.target.path else Path(problem.file).name
                self.mended(f"{file} lacks `{problem.name}` of {source}; with --mend-imports it was supplied.")

    def _import(self) -> None:
        """A new process that has imported the candidate, or none."""
        self.work = Path(tempfile.mkdtemp(prefix="work-", dir=self.home))
        package = str(Path(__file__).resolve().parents[2])
        # -P: the folder that it works in must not provide modules. The package may be importable only from here.
        code = f"import sys; {package!r} in sys.path or sys.path.insert(0, {package!r}); "
        code += "from parity.candidates.worker import main; main()"
        reading, writing = os.pipe()
        try:
            with (self.home / "candidate.log").open("ab") as log:
                self.child = subprocess.Popen(
                    [sys.executable, "-P", "-c", code],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=[writing],
                    cwd=self.work,
                    env=surroundings.variables(self.work, writing, self.memory),
                    start_new_session=True,
                )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self.answers = reading
        os.set_blocking(reading, False)
        try:
            request = {"do": "start", "candidate": self.target.as_json(), "supplied": self.supplied}
            facts = self._ask(request, "while it was imported")
            self.facts = {name: value for name, value in facts.items() if name != "number"}
        except BaseException:
            self._end()
            raise

    @contextlib.contextmanager
    def compiled(self) -> Iterator[None]:
        """With mx.compile at work, which otherwise runs functions as they are written."""
        self._ready()
        self._ask({"do": "compile", "on": True}, "while mx.compile was turned on")
        self.timeout *= COMPILING
        try:
            yield
        finally:
            self.timeout /= COMPILING
            if self.child is not None:  # the next process starts without it
                self._ask({"do": "compile", "on": False}, "while mx.compile was turned off")

    def _ready(self) -> None:
        """After a death: a new process, with what was loaded."""
        if self.child is None and self.folder is not None:
            self.load(self.folder)
        if self.folder is None:
            raise RuntimeError("Load a checkpoint folder before anything is run.")

    def _end(self) -> None:
        """Kill the process, its group and its descendants; nothing is left behind."""
        child, self.child = self.child, None
        if child is None:
            return
        for pid in usage.family(child.pid)[1:]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        with contextlib.suppress(OSError):
            child.stdin.close()
        os.close(self.answers)

    # --- requests and answers ------------------------------------------------------------------------------------

    def _ask(self, request: dict[str, object], doing: str) -> dict[str, object]:
        """One request and its answer, or a problem; `doing` ends the problem's sentence."""
        number = next(self.numbers)
        with contextlib.suppress(OSError):  # a process that has ended is noticed below
            self.child.stdin.write((json.dumps({"number": number} | request) + "\n").encode())
            self.child.stdin.flush()
        try:
            answer = json.loads(self._line(doing))
            if answer["number"] != number:
                raise ValueError("an answer to no request")
            error = answer.get("error")
            problem = told.problem(error, doing, self.work, self.memory) if error else None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as wrong:
            raise self._unreadable(doing) from wrong
        if problem is not None:
            raise problem
        return answer

    def _line(self, doing: str) -> bytes:
        """The next line of the pipe, while time and memory are watched."""
        child = self.child.pid
        deadline, line = time.monotonic() + WAITING * self.timeout, b""
        allowed = usage.processor_time(child) + self.timeout
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.answers], [], [], usage.POLL)
            if ready:
                piece = os.read(self.answers, 1 << 16)
                line += piece
                if not piece:
                    raise Died(f"The candidate {self._last_words()} {doing}.")
                if len(line) > LONGEST_ANSWER:
                    raise self._unreadable(doing)
            if time.monotonic() > deadline:  # first: an answer may come drop by drop
                self._end()
                raise Hung(f"The candidate gave no answer for {WAITING * self.timeout:g} s {doing}.")
            if ready:
                continue
            if usage.resident(child) > self.memory:
                self._end()
                raise told.ate_memory(doing, self.memory)
            if usage.processor_time(child) > allowed:
                self._end()
                raise Hung(f"The candidate computed for longer than the limit of {self.timeout:g} s {doing}.")
        return line

    def _last_words(self) -> str:
        """How a process that closed its pipe ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(1)
        code = self.child.poll()
        self._end()
        return told.last_words(code)

    def _unreadable(self, doing: str) -> Died:
        self._end()
        return Died(UNREADABLE.format(doing=doing))

    # --- files ---------------------------------------------------------------------------------------------------

    def _place(self, name: str) -> Path:
        return self.work / f"{next(self.numbers)}-{name}"

    def _write(self, ids) -> Path:
        """Ids as int32 in a folder that the candidate reads only."""
        path = self.given / f"{next(self.numbers)}-ids.npy"
        np.save(path, np.asarray(ids).astype(np.int32))
        return path

    def _array(self, path: Path, most: int) -> np.ndarray:
        return untrusted.array(path, self.work, most)
