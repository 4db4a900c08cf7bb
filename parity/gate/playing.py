"""A recording that answers in the place of its candidate. It is a stranger's file: all of it is checked when it is
read, what is wrong is one sentence, and nothing outside its folder is opened."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from dsv4_checkpoints.errors import CheckpointError
from dsv4_checkpoints.folder import AGAIN, read_header
from reference_torch.config import QUANTIZATION_SIMULATIONS

from ..candidates import told, untrusted
from ..candidates.adapters import KINDS
from ..candidates.adapters import RECORDING as MANIFEST
from ..candidates.adapters.problems import (
    AteMemory,
    CandidateProblem,
    Died,
    Hung,
    MissingImports,
    NotOffered,
    Raised,
    WroteOutside,
)
from ..errors import BadInput
from .lives import ROWS
from .probes import PROFILES, registry
from .recording import ARRAYS, NAMES, SCHEMA, checkpoint_hash, hash_of, question, question_of
from .results import KINDS_OF_LINE, Place, WrongLine

LARGEST = 1 << 32  # bytes of arrays
LARGEST_MANIFEST = 1 << 28
LONGEST = 100_000  # characters of a text; a candidate's message has 300
HELP = "ask for the recording again"
CHANGED = "The probe has changed since the recording was made."
LACKS = "The recording does not hold this probe."
NEVER_ASKED = "The recording does not hold this: it was not asked then."


class NotRecorded(NotOffered):
    """The recording has no answer to that, which says nothing about the candidate."""


PROBLEMS = {kind.__name__: kind for kind in (Raised, NotOffered, Died, Hung, AteMemory, WroteOutside, MissingImports)}


def read(folder: Path) -> Player:
    """The recording in a folder. Raises BadInput."""
    manifest, arrays = _manifest(folder), _arrays(folder / ARRAYS)
    try:
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        return Player(manifest, arrays)
    except KeyError as error:
        reason = f"{error} is missing"
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = str(error)
    raise BadInput(f"{folder / MANIFEST} is no recording that can be judged ({reason[:200]}); {HELP}.")


class Player:
    """Gives a recording's answers, as Process gives a candidate's. The nth time that something is asked it gives the
    nth answer, and the last one from then on."""

    def __init__(self, manifest: dict, arrays: dict[str, np.ndarray]):
        self.arrays = arrays
        name = _text(manifest["candidate"]["name"])
        self.name = name if name.isprintable() else ascii(name)  # it stands in sentences
        self.kind = _one_of(manifest["candidate"]["kind"], KINDS)
        self.profile = _one_of(manifest["profile"], PROFILES)
        self.seed = _whole(manifest["seed"])
        self.names = _one_of(manifest["names"], ("any", "raw"))
        self.simulation = _one_of(manifest["simulation"], ("auto", *QUANTIZATION_SIMULATIONS))
        self.require = [_text(what) for what in _list(manifest["require"])]
        self.only = [name for what in _list(manifest["only"]) if (name := _text(what)) in {*registry(), *ROWS}]
        self.compiles = _is(manifest["compiles"], bool)
        self.environment = _is(manifest["environment"], dict)
        self.mended = [_text(note) for note in _list(manifest.get("mended", []))]  # older recordings lack it
        self.found = [_wrong_line(one) for one in _list(manifest.get("lines", []))]  # older recordings lack it
        (start,) = _list(manifest["start"])
        self.start = _problem(start) if "problem" in start else None
        self.facts = {} if self.start else _facts(start["facts"])
        self.probes = {_text(one): [_text(n) for n in _list(labels)] for one, labels in manifest["probes"].items()}
        self.tried = [_problem(one) if "problem" in one else None for one in _list(manifest["names_tried"])]
        self.given: dict[str, list] = {}
        for one in _list(manifest["asked"]):
            key = {name: one[name] for name in ("do", "checkpoint", "schedule", "of", "compiled")}
            _one_of(key["do"], ANSWERS)
            given = [_problem(g) if "problem" in g else ANSWERS[key["do"]](self, g) for g in _list(one["given"])]
            if given:  # none where the run was ended meanwhile
                self.given[question(**key)] = given
        self.schedules = {(one["checkpoint"], one["schedule"]) for one in manifest["asked"]}
        self.times: Counter[str] = Counter()
        self.dtype, self.checkpoint, self.folder, self.compiling = "", "", "", False

    @property
    def settings(self) -> dict:
        """How the candidate was judged then."""
        return {name: getattr(self, name) for name in ("profile", "seed", "names", "simulation", "require", "only")}

    def notes(self, environment: dict) -> list[str]:
        """Those on names that were supplied; one where libraries or device were others than those that judge now."""
        then, now = (_libraries(one) for one in (self.environment, environment))
        other = [name for name in now if name in then and then[name] != now[name]]
        if not other:
            return self.mended
        said = [", ".join(f"{name} {one[name]}" for name in other) for one in (then, now)]
        return [*self.mended, f"The recording was made with {said[0]}; it is judged with {said[1]}."]

    def wrong_line(self, mechanism: str, schedule: str, defects: list[str]) -> WrongLine:
        """What was found when the candidate was recorded; its lines do not run any more."""
        asked = mechanism, schedule, defects
        said = "the recording does not hold what its lines computed"
        unseen = WrongLine("not seen", mechanism, schedule, said, defects)
        return next((one for one in self.found if (one.mechanism, one.schedule, one.defects) == asked), unseen)

    def __enter__(self) -> Player:
        if self.start is not None:
            raise self.start
        return self

    def __exit__(self, *exception) -> None:
        """Nothing is open."""

    def load(self, folder: Path) -> None:
        """Look for a checkpoint's answers; one that is not known raises where something is asked of it."""
        self.checkpoint, self.folder = checkpoint_hash(folder), folder.name
        tried = self.times[NAMES]
        self.times[NAMES] += folder.name == NAMES
        if self.checkpoint in self.probes:
            self._answer("load")
        elif folder.name == NAMES and tried < len(self.tried) and self.tried[tried] is not None:
            raise self.tried[tried]  # names that it does not load it loads in no probe

    def run(self, schedule: str, ids, calls: Sequence[int], cached: bool) -> np.ndarray:
        """As Process.run."""
        return self._logits("run", schedule, ids, calls, cached)

    def mtp(self, schedule: str, ids, calls: Sequence[int], cached: bool) -> np.ndarray:
        """As Process.mtp."""
        return self._logits("mtp", schedule, ids, calls, cached)

    def lives(self, asked: dict, limits: dict) -> told.Lives:
        """As Process.lives."""
        return self._given(question_of(asked, self.checkpoint))

    def taps(self, ids) -> list[dict[str, object]]:
        """As Process.taps."""
        return self._answer("taps", "", [hash_of(ids)])

    @contextlib.contextmanager
    def compiled(self) -> Iterator[None]:
        """As Process.compiled."""
        self._answer("compile")
        self.compiling = True
        try:
            yield
        finally:
            self.compiling = False
            self._answer("stop compiling")

    def _logits(self, do: str, schedule: str, ids, calls: Sequence[int], cached: bool) -> np.ndarray:
        logits, self.dtype = self._answer(do, schedule, [hash_of(ids), [*calls], cached], self.compiling)
        return logits.copy()

    def _answer(self, do: str, schedule: str = "", of: Sequence = (), compiled: bool = False):
        return self._given(question(do, self.checkpoint, schedule, of, compiled), schedule)

    def _given(self, key: str, schedule: str = ""):
        given = self.given.get(key)
        if given is None:
            raise NotRecorded(self._missing(schedule))
        answer = given[min(self.times[key], len(given) - 1)]
        self.times[key] += 1
        if isinstance(answer, CandidateProblem):
            raise answer
        return answer

    def _missing(self, schedule: str) -> str:
        """Why there is no answer."""
        if self.checkpoint not in self.probes:
            return CHANGED if any(self.folder in labels for labels in self.probes.values()) else LACKS
        return (
            CHANGED
            if schedule and (self.checkpoint, schedule) in self.schedules and not self.compiling
            else NEVER_ASKED
        )

    def _array(self, name: object) -> np.ndarray:
        if not isinstance(name, str) or name not in self.arrays:
            raise ValueError(f"{ARRAYS} lacks an array")
        return self.arrays[name]


# --- what an answer must be --------------------------------------------------------------------------------------


def _told_logits(player: Player, given: dict) -> tuple[np.ndarray, str]:
    return player._array(given["logits"]), _text(given["dtype"])


def _told_lives(player: Player, given: dict) -> told.Lives:
    if min(_whole(given["lives"]), _whole(given["tokens"])) < 0:
        raise ValueError("a negative number of lives")
    return told.lives(given)


def _told_taps(player: Player, given: dict) -> list[dict[str, object]]:
    return [
        {"path": _text(path), "kind": _text(kind), "array": player._array(name)}
        for path, kind, name in _list(given["taps"])
    ]


ANSWERS = {
    "load": lambda player, given: None,
    "run": _told_logits,
    "mtp": _told_logits,
    "lives": _told_lives,
    "serve": _told_lives,
    "taps": _told_taps,
    "compile": lambda player, given: None,
    "stop compiling": lambda player, given: None,
}


def _problem(given: dict) -> CandidateProblem:
    kind, sentence = PROBLEMS[_one_of(given["problem"], PROBLEMS)], _text(given["sentence"])
    if kind is MissingImports:
        return MissingImports(sentence, [_text(name) for name in _list(given["names"])])
    return kind(sentence)


def _facts(facts: dict) -> dict[str, object]:
    line, file = facts.get("line"), facts.get("file")
    if line is not None and _whole(line) < 1:
        raise ValueError("a line below 1")
    versions = {_text(name): _text(version) for name, version in _is(facts.get("versions", {}), dict).items()}
    return {"file": None if file is None else _text(file), "line": line, "versions": versions}


def _libraries(environment: dict) -> dict[str, str]:
    libraries = environment.get("libraries")
    device = {"on": str(environment.get("mlx_device"))[:100]}
    return {name: str(v)[:100] for name, v in libraries.items()} | device if isinstance(libraries, dict) else device


def _is(value: object, kind: type):
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _list(value: object) -> list:
    return _is(value, list)


def _text(value: object) -> str:
    if len(_is(value, str)) > LONGEST:
        raise ValueError(f"a text of {len(value)} characters")
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or abs(_is(value, int)) >= 1 << 48:
        raise ValueError("no number of a usable size")
    return value


def _one_of(value: object, known) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{str(value)[:40]!r} where one of {', '.join(known)} belongs")
    return value


def _wrong_line(value: dict) -> WrongLine:
    texts = [_text(value[name]) for name in ("kind", "mechanism", "schedule", "sentence")]
    places = [_place(value[name]) for name in ("at", "after")]
    numbers = [[float(one) for one in _list(value[name])] for name in ("expected", "got")]
    defects = [_text(one) for one in _list(value["defects"])]
    _one_of(texts[0], KINDS_OF_LINE)
    return WrongLine(*texts, defects, *places, _text(value["gives"]), _is(value["inputs_right"], bool), *numbers)


def _place(value: dict | None) -> Place | None:
    if value is None:
        return None
    lines = [_text(one) for one in _list(value["text"])]
    line, end, first = (_whole(value[name]) for name in ("line", "end", "first"))
    return Place(_text(value["file"]), line, end, _text(value["function"]), first, lines)


# --- the files ---------------------------------------------------------------------------------------------------


def _content(path: Path, most: int) -> bytes:
    """Of a plain file in the folder. Raises BadInput."""
    try:
        return untrusted.content(path, path.parent, min(most, path.lstat().st_size))
    except FileNotFoundError as error:
        raise BadInput(f"{path} is missing; {HELP}.") from error
    except (OSError, ValueError, MemoryError) as error:
        raise BadInput(f"{path} cannot be read as a plain file of at most {most >> 20} MiB; {HELP}.") from error


def _manifest(folder: Path) -> object:
    path = folder / MANIFEST
    try:
        return json.loads(_content(path, LARGEST_MANIFEST), parse_constant=_no_number)
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadInput(f"{path} holds no JSON; {HELP}.") from error


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """By name, float32 all of them, each with the content that its name is the hash of."""
    data = _content(path, LARGEST)
    try:
        header = read_header(path)
        other = next((name for name, stored in header.items() if stored.dtype != "F32"), None)
        arrays = load(data) if other is None else {}
    except CheckpointError as error:
        raise BadInput(f"{str(error).replace(AGAIN, HELP)}") from error
    except (SafetensorError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise BadInput(f"{path} cannot be read ({str(error)[:200]}); {HELP}.") from error
    if other is not None or any(hash_of(array) != name for name, array in arrays.items()):
        raise BadInput(f"{path} is damaged: an array is not what was recorded; {HELP}.")
    return arrays
