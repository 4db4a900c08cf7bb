"""What a run found, as plain data: every report is rendered from this and from nothing else."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from enum import Enum


class Verdict(Enum):
    """The outcomes of a run and their exit codes (method, section 8)."""

    PARITY = "parity"
    DIVERGES = "diverges"
    BAD_INPUT = "bad input"
    ENVIRONMENT = "environment"
    CRASHED = "crashed"
    COVERAGE_GAP = "coverage gap"
    INCONCLUSIVE = "inconclusive"
    NO_DEVICE = "no device"
    DEVICE = "device"
    INTERRUPTED = "interrupted"

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self]


EXIT_CODES = {
    Verdict.PARITY: 0,
    Verdict.DIVERGES: 1,
    Verdict.BAD_INPUT: 2,
    Verdict.ENVIRONMENT: 3,
    Verdict.CRASHED: 4,
    Verdict.COVERAGE_GAP: 5,
    Verdict.INCONCLUSIVE: 5,
    Verdict.NO_DEVICE: 6,
    Verdict.DEVICE: 7,
    Verdict.INTERRUPTED: 130,
}

# When parts of a run end differently, the first of these that occurs is the run's verdict.
PRECEDENCE = (Verdict.INCONCLUSIVE, Verdict.DIVERGES, Verdict.CRASHED, Verdict.COVERAGE_GAP, Verdict.PARITY)


def overall(verdicts: list[Verdict]) -> Verdict:
    """One verdict of many; of none, a coverage gap, because comparing nothing is never a pass."""
    return next((verdict for verdict in PRECEDENCE if verdict in verdicts), Verdict.COVERAGE_GAP)


@dataclass
class Tap:
    """One tensor over all examples: its largest error, the limit and the null beside it, and the ratios that decide.

    Errors are those of the worst example. `contraction` is the longest sum behind the tensor's last axis, where that
    is known.
    """

    name: str
    examples: int
    elements: int
    error_rms: float
    error_max: float
    limit_rms: float
    limit_max: float
    null_rms: float
    null_max: float
    floor_rms: float
    factor_rms: float
    factor_max: float
    reason: str
    worst_ratio: float
    pooled_ratio: float


@dataclass
class Failure:
    """A deviation with its smallest example and the command that shows it again."""

    sentence: str
    case: dict | None
    schedule: str
    reproduce: str
    shrunk: bool = False


@dataclass
class PairResult:
    """One pair in one type."""

    name: str
    title: str
    spec: str
    dtype: str
    verdict: Verdict
    cases: int
    ratio: float
    ties: int
    decisions: int
    taps: list[Tap] = field(default_factory=list)
    failure: Failure | None = None
    because: list[str] = field(default_factory=list)
    device: str = "cpu"


@dataclass
class LayerResult:
    """One layer of the whole model: alone on the reference's input, and at the end of its own path."""

    model: str
    dtype: str
    layer: int
    kind: str
    isolated_ratio: float
    isolated_error: float
    accumulated_error: float
    accumulated_baseline: float
    verdict: Verdict
    ties: int = 0
    device: str = "cpu"


@dataclass
class Finding:
    """The one thing to look at first."""

    pair: str
    dtype: str
    sentence: str
    reproduce: str


@dataclass
class Report:
    """A whole run; `clock` holds everything that may differ between two runs with the same seed."""

    command: str
    profile: str
    seed: int
    verdict: Verdict
    sentence: str
    environment: dict
    consistency: list[PairResult] = field(default_factory=list)
    pairs: list[PairResult] = field(default_factory=list)
    layers: list[LayerResult] = field(default_factory=list)
    golden: list[GoldenResult] = field(default_factory=list)
    finding: Finding | None = None
    clock: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        """The JSON document, schema `dsv4-parity/report/1` (`parity/report/schema.json`)."""
        return {"schema": "dsv4-parity/report/1", "exit_code": self.verdict.exit_code} | plain(self)


@dataclass
class GoldenTap:
    """One recorded tensor against one implementation."""

    name: str
    schedule: str
    error_rms: float
    error_max: float
    limit_rms: float
    limit_max: float
    ratio: float
    undecided: float
    ties: int = 0
    note: str = ""


@dataclass
class GoldenResult:
    """One recorded case against one implementation."""

    case: str
    implementation: str
    dtype: str
    verdict: Verdict
    sentence: str
    ratio: float
    ties: int
    taps: list[GoldenTap] = field(default_factory=list)


def plain(value):
    """Dataclasses, enums and numbers as JSON knows them; an infinite number becomes the string "inf"."""
    if dataclasses.is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Verdict):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else "inf"
    return value
