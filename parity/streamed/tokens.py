"""The token ids that a run over a checkpoint feeds: from a file, from a text, or the package's own text."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np

from ..errors import BadInput

TEXT, TOKENIZER = "text.txt", "tokenizer.json"
MOST = 1 << 20  # tokens; the published models know no more positions


def read_ids(given: str | None, folder: Path, vocabulary: int, most: int | None = None) -> np.ndarray:
    """Ids [S] as int64, at most ``most`` of them.

    ``given`` is a file of ids (.json, .npy, or integers in a .txt), a file of text, or a text; None is the text that
    comes with the package. Text needs the checkpoint's tokenizer. Raises BadInput.
    """
    source = given if given is not None else files(__package__).joinpath(TEXT).read_text(encoding="utf-8")
    path = Path(given) if given is not None and len(given) < 4096 and "\n" not in given else None
    if path is not None and path.is_file():
        ids = _from_file(path, folder)
    elif path is not None and path.suffix in (".json", ".npy", ".txt"):
        raise BadInput(f"--tokens names {path}, which does not exist; give a file of ids, a file of text, or a text.")
    else:
        ids = encoded(source, folder, given is None, vocabulary)
    if ids.ndim != 1 or not len(ids) or len(ids) > MOST:
        raise BadInput(f"--tokens gives ids of shape {list(ids.shape)}; give one sequence of 1 to {MOST} ids.")
    if ids.min() < 0 or ids.max() >= vocabulary:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise BadInput(f"--tokens holds id {wrong}, which is outside the checkpoint's vocabulary of {vocabulary}.")
    return ids[:most]


def _from_file(path: Path, folder: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            return _integers(np.load(path, allow_pickle=False), path)
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return _integers(np.asarray(json.loads(content)), path)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} cannot be read as token ids ({_line(error)}); give integers.") from error
    words = content.split()
    if words and all(word.isdigit() for word in words):
        return np.array([int(word) for word in words[:MOST]], dtype=np.int64)
    return encoded(content, folder, False, 0)


def _integers(ids: np.ndarray, path: Path) -> np.ndarray:
    if not np.issubdtype(ids.dtype, np.integer):
        raise BadInput(f"{path} holds {ids.dtype}; give one sequence of integer token ids.")
    return ids.astype(np.int64)


def encoded(text: str, folder: Path, default: bool, vocabulary: int) -> np.ndarray:
    """A text in the checkpoint's own tokens. Without a tokenizer the package's own text becomes its bytes."""
    if not (folder / TOKENIZER).is_file():
        if default:
            return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) % vocabulary
        raise BadInput(f"{folder} has no tokenizer.json to read a text with; give --tokens a file of ids.")
    return np.array(_tokenized(folder, lambda tokenizer: tokenizer.encode(text).ids), dtype=np.int64)


def decoded(ids: list[int], folder: Path) -> str:
    """The text of token ids; empty where the checkpoint has no tokenizer."""
    return _tokenized(folder, lambda tokenizer: tokenizer.decode(ids)) if (folder / TOKENIZER).is_file() else ""


def _tokenized(folder: Path, use: Callable):
    """What the checkpoint's tokenizer gives. Raises BadInput."""
    from tokenizers import Tokenizer

    try:
        return use(Tokenizer.from_file(str(folder / TOKENIZER)))
    except Exception as error:  # the library raises bare exceptions
        raise BadInput(f"{folder / TOKENIZER} cannot be used ({_line(error)}); give ids instead.") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
