"""What the gate found about one candidate, as plain data: every report of `parity gate` is rendered from this."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..results import Verdict, plain

SCHEMA = "dsv4-parity/gate/1"


@dataclass
class Mechanism:
    """One row of the matrix. `needs` are the mechanisms that its probe cannot mute; they stand earlier in the order.

    beyond: why no published checkpoint needs it, where none does and it does not count; else empty.
    """

    name: str
    title: str
    spec: str
    needs: list[str] = field(default_factory=list)
    beyond: str = ""


@dataclass
class Cell:
    """One mechanism under one schedule: the candidate's logits against the reference's.

    verdict: parity, diverges, crashed, or coverage gap (not offered). ratio: worst error over limit. first_token: the
    first position whose logits are beyond the limit. explained_by: ids of the diagnosed defects that reproduce these
    logits. because: needed mechanisms that are themselves red and unexplained, so that this cell may only follow. life:
    of a row of the caches, the shortest broken life found, as lines of mlx-lm calls (`lives.script`).
    """

    mechanism: str
    schedule: str
    verdict: Verdict
    sentence: str = ""
    tokens: int = 0
    left_out: int = 0
    ratio: float = 0.0
    error_rms: float = 0.0
    error_max: float = 0.0
    limit_rms: float = 0.0
    limit_max: float = 0.0
    null_rms: float = 0.0
    null_max: float = 0.0
    floor_rms: float = 0.0
    factor_rms: float = 0.0
    factor_max: float = 0.0
    reason: str = ""
    first_token: int | None = None
    explained_by: list[str] = field(default_factory=list)
    because: list[str] = field(default_factory=list)
    drift: float | None = None
    life: list[str] = field(default_factory=list)


@dataclass
class Deviation:
    """The first red cell in dependency order."""

    mechanism: str
    schedule: str
    sentence: str


@dataclass
class Diagnosis:
    """Defects with which the reference reproduces the candidate's own logits; an empty list where nothing matches.

    formula: the line as it should read. cells: how many red cells these defects reproduce, of how many red ones.
    """

    defects: list[str]
    titles: list[str]
    sentence: str
    formula: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    explained: int = 0
    red: int = 0


@dataclass
class Beyond:
    """A row that deviates and that no published checkpoint needs: no part of the verdict. `why` none does; the defects
    with which the reference reproduces it, as in a diagnosis."""

    mechanism: str
    schedules: list[str]
    why: str
    sentence: str
    defects: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)


@dataclass
class Gap:
    """Something that the candidate does not offer, and so was not judged."""

    what: str
    sentence: str
    required: bool = False


@dataclass
class Loading:
    """What the candidate did with a probe's checkpoint in one family's names: loads, does not load, not tried.

    form: plain (float32), packed (as published: fp8 matrices, fp4 experts), or with the experts packed alone.
    """

    family: str
    title: str
    state: str
    sentence: str = ""
    form: str = "plain"


@dataclass
class LayerError:
    """One tensor of the reference found by its values among what the candidate's modules returned, or not found."""

    tap: str
    layer: int
    module: str | None
    error: float
    limit: float


@dataclass
class KeysSeen:
    """Which keys each query of a red cell's first sequence saw, worked out from its logits.

    keys: names, "3" for token 3 and "row 2" for compressed row 2. expected and seen: for each query, places in `keys`;
    seen is empty for the queries in `unclear`, whose logits fit no choice of keys.
    """

    mechanism: str
    schedule: str
    keys: list[str]
    expected: list[list[int]]
    seen: list[list[int]]
    unclear: list[int] = field(default_factory=list)


@dataclass
class Place:
    """A statement of the candidate's: first and last line, and its text with up to two lines around, from line `first`.

    file: as the candidate's process names it.
    """

    file: str
    line: int
    end: int
    function: str
    first: int = 1
    text: list[str] = field(default_factory=list)


def where(file: str, line: int) -> str:
    """`file:line` in one word, which terminals and editors open; from the current folder where the file is below it."""
    try:
        return f"{Path(file).relative_to(Path.cwd())}:{line}"
    except (OSError, ValueError):  # there is no current folder any more; it is not below it
        return f"{file}:{line}"


KINDS_OF_LINE = ("line", "likely", "between", "not seen")  # the one that says most first


@dataclass
class WrongLine:
    """Where in the candidate's own code a red mechanism goes wrong.

    kind: "line" (the statement `at` gives what the named defects make of right values), "likely" (it does what the
    reference does where the defect stands, but values alone leave it between two), "between" (one of `after` and
    `at` may be wrong, or what runs between them), or "not seen"; the sentence says why. defects: what it is about;
    empty where none is named. gives: what `at` binds. inputs_right: whether every value that `at` reads is the
    reference's, the strongest form. expected, got: a few numbers of that value, in order of size, where both are known.
    """

    kind: str
    mechanism: str
    schedule: str
    sentence: str
    defects: list[str] = field(default_factory=list)
    at: Place | None = None
    after: Place | None = None
    gives: str = ""
    inputs_right: bool = False
    expected: list[float] = field(default_factory=list)
    got: list[float] = field(default_factory=list)


@dataclass
class Candidate:
    """Who was judged. `source` is the file of its model class and `line` where the class stands, where known."""

    name: str
    kind: str
    source: str | None = None
    line: int | None = None
    libraries: dict = field(default_factory=dict)


@dataclass
class GateReport:
    """A whole judgement; `clock` holds everything that may differ between two runs with the same seed."""

    candidate: Candidate
    profile: str
    seed: int
    verdict: Verdict
    sentence: str
    environment: dict = field(default_factory=dict)
    mechanisms: list[Mechanism] = field(default_factory=list)
    schedules: list[str] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    first_deviation: Deviation | None = None
    diagnosis: list[Diagnosis] = field(default_factory=list)
    beyond: list[Beyond] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    loading: list[Loading] = field(default_factory=list)
    layers: list[LayerError] = field(default_factory=list)
    keys: list[KeysSeen] = field(default_factory=list)
    lines: list[WrongLine] = field(default_factory=list)
    reproduce: str = ""
    clock: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        """The JSON document, schema `dsv4-parity/gate/1` (`parity/report/gate_schema.json`)."""
        return {"schema": SCHEMA, "command": "gate", "exit_code": self.verdict.exit_code} | plain(self)
