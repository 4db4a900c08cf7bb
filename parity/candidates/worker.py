"""The candidate's own process: reads one request a line, answers one line each; started by `process.Process`.

Whatever the candidate prints goes to the log; answers go through a pipe of their own.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import sys
import textwrap
import traceback
from importlib import metadata
from pathlib import Path

from . import containment, mending
from .adapters import Target, load_adapter
from .adapters.imports import missing_imports
from .adapters.problems import NotOffered

LIBRARIES = {
    "mlx": "mlx.core",
    "mlx-lm": "mlx_lm",
    "mlx-vlm": "mlx_vlm",
    "transformers": "transformers",
    "torch": "torch",
}
LONGEST_MESSAGE = 300
LARGEST_RATIO = 1e9  # JSON knows no infinity


class NoRoom(OSError):
    """The harness's own file could not be written, which is not the candidate's fault."""


class Worker:
    """Carries out requests, one method each."""

    def __init__(self):
        self.port, self.file, self.watch = None, None, None

    def start(self, candidate: dict[str, str], supplied: list[tuple[str, str]]) -> dict[str, object]:
        if supplied:
            mending.supply(supplied)
        self.target = Target(**candidate)
        if self.target.device and self.target.kind != "hf":
            import mlx.core as mx

            mx.set_default_device(getattr(mx, self.target.device))  # before the port makes streams of it
        port = load_adapter(self.target)
        found = where_is(port.start())
        self.port, self.file = port, found["file"]
        return {"kind": self.target.kind, **found, "versions": versions()} | {
            "mtp": port.mtp_offered,
            "taps": port.taps_tree,
        }

    def load(self, folder: str) -> dict[str, object]:
        with self._watching():
            self.port.load(Path(folder))
        return {}

    def run(self, ids: str, calls: list[int], cached: bool, out: str, schedule: str) -> dict[str, object]:
        with self._watching():
            return save(out, *self.port.run(read(ids), calls, cached))

    def mtp(self, ids: str, calls: list[int], cached: bool, out: str, schedule: str) -> dict[str, object]:
        with self._watching():
            return save(out, *self.port.mtp(read(ids), calls, cached))

    def compile(self, on: bool) -> dict[str, object]:
        if self.port.taps_tree == "mlx":
            import mlx.core as mx

            (mx.enable_compile if on else mx.disable_compile)()
        return {}

    def lives(
        self, vocabulary: int, sequences: int, operations: int, seed: int, generation: bool, limits: dict[str, object]
    ) -> dict[str, object]:
        from ..lives import exploring, offers
        from ..lives.port import Lives

        port = self._living(vocabulary, limits)
        gaps = offers.gaps(port)
        lives = Lives(port, frozenset(gaps))
        exploring.explore(lives, sequences, operations, seed, fixed=exploring.FIXED if generation else ())
        return self._told(lives, gaps | lives.lacking)

    def serve(self, vocabulary: int, schedule: str, seed: int, limits: dict[str, object]) -> dict[str, object]:
        from ..lives import exploring, offers, served
        from ..lives.port import Lives

        port = self._living(vocabulary, limits)
        gaps = offers.gaps(port)
        lives, lacking = Lives(port, frozenset(gaps)), served.lacking(schedule, port, gaps)
        if not lacking:
            exploring.explore(lives, 0, 0, seed, fixed=served.lives(schedule, seed))
        lacking = lacking or next(iter(lives.lacking.values()), "")
        return self._told(lives, {schedule: lacking} if lacking else {})

    def _living(self, vocabulary: int, limits: dict[str, object]):
        from ..lives.limits import Limits

        unclear = tuple(map(tuple, limits["unclear"]))
        return self.port.living(vocabulary, Limits(limits["largest"], limits["scale"], unclear))

    def _told(self, lives, gaps: dict[str, str]) -> dict[str, object]:
        from ..lives import exploring

        broken = lives.broken
        return {
            "lives": lives.lives,
            "tokens": lives.tokens,
            "ratio": min(lives.ratio, LARGEST_RATIO),
            "gaps": gaps,
            "broken": broken and [broken.sentence, exploring.sort_of(broken.operations), broken.raised],
            "script": broken.script if broken else [],
            "suspect": broken and broken.suspect and [broken.suspect[0], min(LARGEST_RATIO, broken.suspect[1])],
        }

    def taps(self, ids: str, out: str) -> dict[str, object]:
        import numpy as np

        folder, index = Path(out), []
        folder.mkdir()
        for number, (path, kind, value) in enumerate(self.port.taps(read(ids))):
            np.save(folder / f"{number}.npy", value)
            index.append({"path": path, "class": kind, "shape": list(value.shape), "file": f"{number}.npy"})
        (folder / "index.json").write_text(json.dumps(index))
        return {}

    def watch_lines(self) -> dict[str, object]:
        """From now on the port's own lines are watched."""
        from .watching import Watch, own_files

        if self.file is None:
            raise NotOffered("Nobody knows the file of the candidate's model class.")
        self.watch = Watch(own_files(self.file))
        return {}

    def lines(self, out: str) -> dict[str, object]:
        """What they computed."""
        import numpy as np

        (flat, index), self.watch = self.watch.told(), None
        folder = Path(out)
        folder.mkdir()
        np.save(folder / "values.npy", flat)
        (folder / "index.json").write_text(json.dumps(index))
        return {}

    def _watching(self):
        return contextlib.nullcontext() if self.watch is None else self.watch.watching()


def read(path: str):
    """Token ids [B, T] that the harness wrote."""
    import numpy as np

    return np.load(path, allow_pickle=False)


def save(path: str, logits, dtype: str) -> dict[str, object]:
    """Write logits for the harness; the answer that announces them."""
    import numpy as np

    try:
        np.save(path, logits.astype(np.float32, copy=False))
    except OSError as error:
        raise NoRoom(str(error)) from error
    return {"dtype": dtype}


def where_is(model_class: type) -> dict[str, object]:
    """Name, file and line of a class."""
    try:
        file, line = inspect.getsourcefile(model_class), inspect.getsourcelines(model_class)[1]
    except (OSError, TypeError):  # a class without source
        file, line = None, None
    return {"class": f"{model_class.__module__}.{model_class.__qualname__}", "file": file, "line": line}


def versions() -> dict[str, str]:
    """Of the libraries that the port has loaded; a checkout tells its own."""
    found = {}
    for name, module in LIBRARIES.items():
        if module in sys.modules:
            own = getattr(sys.modules[module], "__version__", None)
            found[name] = str(own) if own else _installed(name)
    return found


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def problem(error: BaseException, target: Target | None) -> dict[str, object]:
    """An exception of the candidate as an answer."""
    kind = "no room" if isinstance(error, NoRoom) else "raised"
    if isinstance(error, SystemExit):
        kind = "exit"
    elif isinstance(error, (NotOffered, NotImplementedError)):  # the latter is how Python code says so
        kind = "not offered"
    elif names := missing_imports(error, target):
        kind = "missing imports"
    message = textwrap.shorten(str(error), LONGEST_MESSAGE, placeholder=" ...")
    found = {"kind": kind, "type": type(error).__name__, "message": message, "where": place_of(error, target)}
    found["lacks"] = mending.lacking(error)
    return found | ({"names": names} if kind == "missing imports" else {})


def place_of(error: BaseException, target: Target | None) -> str | None:
    """The innermost line of the candidate's own code that the exception passed, else the innermost of all."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    own = Path(__file__).parents[1]
    frames = [frame for frame in frames if own not in Path(frame.filename).parents]
    if target is not None:
        top = target.module.partition(".")[0]
        ours = [
            frame for frame in frames if frame.filename == target.path or (top and top in Path(frame.filename).parts)
        ]
        frames = ours or frames
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else None


def serve(requests, answers, attempts: list[str]) -> None:
    """Answer until there are no more requests."""
    worker = Worker()
    for line in requests:
        request = json.loads(line)
        number, do = request.pop("number"), request.pop("do")
        try:
            answer = getattr(worker, do)(**request)
        except BaseException as error:  # a candidate may raise KeyboardInterrupt as well as anything else
            traceback.print_exc()
            answer = {"error": problem(error, getattr(worker, "target", None))}
        if attempts:
            answer = {"error": {"kind": "wrote outside", "message": attempts[0]}}
            attempts.clear()
        os.write(answers, (json.dumps({"number": number, **answer}) + "\n").encode())


def main() -> None:
    """Take the pipes away from the candidate, contain it, serve."""
    containment.die_with_parent()
    answers = int(os.environ.pop("PARITY_ANSWERS"))
    requests = os.fdopen(os.dup(0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    containment.limit(int(os.environ.pop("PARITY_MEMORY")))
    serve(requests, answers, containment.contain(Path.cwd()))


if __name__ == "__main__":
    main()
