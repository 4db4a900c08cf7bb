"""Kinds of candidates: one short file each, behind one protocol.

`resolve` runs in the harness and imports nothing of a candidate; `load_adapter` runs in the candidate's own process.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...errors import BadInput

if TYPE_CHECKING:
    import numpy as np

    from ...lives.limits import Limits
    from ...lives.port import Port

WORDS = ("dsv4_mlx", "hf")
PACKAGES = ("mlx_lm", "mlx_vlm")
KINDS = (*WORDS, *PACKAGES, "model_file", "module")
MODEL = "deepseek_v4"
RECORDING = "recording.json"  # the file by which the recording of a candidate is known
MODULE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class Target:
    """A candidate that was found: `kind` is the file here that drives it, or "recording" for what one gave."""

    text: str
    kind: str
    module: str = ""  # the dotted name to import
    root: str = ""  # the folder that goes to the front of sys.path, if it is not there
    path: str = ""  # the file, where one was named
    device: str = ""  # of MLX, "cpu" or "gpu", where the machine has both

    def as_json(self) -> dict[str, str]:
        """The fields, as `Target(**fields)` takes them."""
        return asdict(self)


class Adapter(Protocol):
    """What each kind gives; arrays are numpy's, ids are int32."""

    taps_tree: str | None  # "mlx" or "torch" where modules can be recorded
    mtp_offered: bool

    def start(self) -> type:
        """Import the port; its model class."""

    def load(self, folder: Path) -> None:
        """Build the model of a checkpoint folder as a user would, strictly."""

    def run(self, ids: np.ndarray, calls: Sequence[int], cached: bool) -> tuple[np.ndarray, str]:
        """Ids [B, T], fed in these calls to one fresh cache or to none -> logits [B, T, V] in float32, own dtype."""

    def mtp(self, ids: np.ndarray, calls: Sequence[int], cached: bool) -> tuple[np.ndarray, str]:
        """Ids [B, T + 1] -> logits two ahead [B, T, V] in float32, own dtype."""

    def living(self, vocabulary: int, limits: Limits) -> Port:
        """The model as the state machine drives it, if it keeps mlx-lm's contract of caches."""

    def taps(self, ids: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
        """Path, class and output of every module of a one-shot run, in the order in which they ended."""


def load_adapter(target: Target) -> Adapter:
    """The adapter of a target's kind, nothing of the candidate imported yet."""
    return importlib.import_module(f".{target.kind}", __package__).Port(target)


def resolve(text: str) -> Target:
    """What CANDIDATE names, or `BadInput`: a word, a file, a folder that holds mlx-lm or mlx-vlm or a
    recording, a dotted module."""
    if text in WORDS:
        return Target(text, kind=text)
    if not text.strip():
        raise BadInput(f"No candidate was given; {_known()}.")
    try:
        path = Path(text).expanduser()
        if path.is_file():
            return _file(text, path.resolve())
        if path.is_dir():
            return _folder(text, path.resolve())
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # too long, an unknown user, a null byte, no permission
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise BadInput(f"{text} is no usable path ({reason}); give another.") from error
    if os.sep in text or text.endswith(".py"):
        raise BadInput(f"There is no file or folder {text}; give the path of a model file or of a checkout.")
    if MODULE_NAME.fullmatch(text):
        return _module(text)
    raise BadInput(f"'{text}' names no candidate; {_known()}.")


def _file(text: str, path: Path) -> Target:
    if path.suffix != ".py":
        raise BadInput(f"{text} is no Python file; give the .py file that holds Model and ModelArgs.")
    package = _package_around(path)
    if package is not None and package.name == "mlx_vlm":
        return _folder(text, path.parent)
    if package is not None and _is_whole(package) and path.parent == package / "models":
        return Target(text, "mlx_lm", f"mlx_lm.models.{path.stem}", str(package.parent), str(path))
    own = None if package is not None else _own_package(path)
    if own is not None:
        module, root = own
        return Target(text, "module", module, str(root), str(path))
    return Target(text, "model_file", path=str(path))


def _folder(text: str, folder: Path) -> Target:
    if (folder / RECORDING).is_file():
        return Target(text, "recording", path=str(folder))
    around = _package_around(folder)
    packages = [around] if around else [folder / name for name in PACKAGES]
    for package in packages:
        if _model_of(package):
            return Target(text, package.name, f"{package.name}.models.{MODEL}", str(package.parent))
    raise BadInput(
        f"{text} holds neither mlx_lm/models/{MODEL} nor mlx_vlm/models/{MODEL}; give the folder that holds the "
        "package, or the model file itself."
    )


def _module(text: str) -> Target:
    """The file must exist; it is not imported here."""
    top, *rest = text.split(".")
    spec = PathFinder.find_spec(top, [*sys.path, os.getcwd()])
    if spec is None:
        raise BadInput(f"'{text}' is no word and no installed module; {_known(text)}.")
    for folder in spec.submodule_search_locations or ():
        found = Path(folder).joinpath(*rest)
        if found.is_dir() or found.with_suffix(".py").is_file():
            break
    else:
        if rest or not spec.origin:
            raise BadInput(f"{top} is installed but has no module {text}; {_known()}.")
    kind = top if top in PACKAGES else "module"
    origin = Path(spec.origin) if spec.origin else Path(next(iter(spec.submodule_search_locations)), "")
    package = spec.submodule_search_locations is not None and spec.origin
    root = origin.parents[1] if package else origin.parent
    return Target(text, kind, text, str(root.resolve()))


def _package_around(path: Path) -> Path | None:
    """The nearest folder named mlx_lm or mlx_vlm that a path lies in, or is."""
    return next((folder for folder in (path, *path.parents) if folder.name in PACKAGES), None)


def _own_package(path: Path) -> tuple[str, Path] | None:
    """The dotted name of a file in a package and the folder that holds the package; None for a file that lies alone.

    A folder without __init__.py right inside a package belongs to it too, as a namespace does.
    """
    holds = lambda folder: (folder / "__init__.py").is_file()  # noqa: E731
    parts, root = [] if path.name == "__init__.py" else [path.stem], path.parent
    while root.name and "." not in root.name and (holds(root) or holds(root.parent)):
        parts.insert(0, root.name)
        root = root.parent
    if root == path.parent or "." in path.stem:
        return None
    return ".".join(parts), root


def _is_whole(package: Path) -> bool:
    """A tree that can be imported, not only some of its files."""
    return (package / "utils.py").is_file() and (package / "models" / "base.py").is_file()


def _model_of(package: Path) -> bool:
    models = package / "models"
    return _is_whole(package) and ((models / f"{MODEL}.py").is_file() or (models / MODEL / "__init__.py").is_file())


def _known(text: str = "") -> str:
    close = difflib.get_close_matches(text, [*WORDS, *(f"{name}.models.{MODEL}" for name in PACKAGES)], n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return (
        f"{hint}known: {', '.join(WORDS)}, a model file, a checkout of mlx-lm or mlx-vlm, a dotted module, a recording"
    )
