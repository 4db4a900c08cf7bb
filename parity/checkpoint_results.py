"""What a run over a checkpoint found, as plain data: every report of `parity checkpoint` is rendered from this."""

from __future__ import annotations

from dataclasses import dataclass, field

from .results import Tap, Verdict, plain

SCHEMA = "dsv4-parity/checkpoint/1"


@dataclass
class Choices:
    """What one module chose over all tokens: the router's experts, the indexer's rows.

    agreement: share of tokens with exactly the reference's set. ties: those that differ within the noise. illegal: those
    that differ beyond it. margin: median over the tokens of the exact score's gap at the cut; margin_differing: the
    same over those that differ.
    """

    what: str
    tokens: int
    agreement: float
    ties: int
    illegal: int
    margin: float
    margin_differing: float


@dataclass
class Matrix:
    """The matrices of one kind in a layer (one, or all experts'), in the converted folder against the original.

    sqnr: signal to quantisation noise in dB, the mean; lowest: the worst, which is that of `worst`. expected: what the
    same format gives where the original is rounded to nearest, measured on that worst one.
    """

    name: str
    format: str
    sqnr: float
    lowest: float
    worst: str
    expected: float


@dataclass
class Path:
    """How far a tensor is from the reference's exact one: relative RMS, cosine, largest difference."""

    relative: float
    cosine: float
    largest: float


@dataclass
class Stage:
    """One step of the model: the embedding, a layer, the head, an MTP block.

    ratio: worst error over limit of the candidate alone on the reference's input. isolated: its distance there, and
    isolated_baseline that of the reference in the same type. accumulated and accumulated_baseline: on their own paths.
    """

    name: str
    kind: str
    verdict: Verdict
    sentence: str = ""
    ratio: float = 0.0
    isolated: Path | None = None
    isolated_baseline: Path | None = None
    accumulated: Path | None = None
    accumulated_baseline: Path | None = None
    taps: list[Tap] = field(default_factory=list)
    choices: list[Choices] = field(default_factory=list)
    matrices: list[Matrix] = field(default_factory=list)
    stored_bytes: int = 0
    devices: dict[str, float] = field(default_factory=dict)


@dataclass
class Text:
    """Next tokens over the text: of the candidate against the reference, and of the reference in the run's type."""

    kl: float
    kl_largest: float
    top1: float
    topk: float
    perplexity_reference: float
    perplexity_candidate: float
    baseline_kl: float
    baseline_top1: float


@dataclass
class Continuation:
    """A greedy continuation: how many of its tokens are the recorded ones."""

    name: str
    tokens: int
    agree: int
    sentence: str


@dataclass
class CheckpointReport:
    """A whole run; `clock` holds everything that may differ between two runs with the same options."""

    checkpoint: str
    original: str | None
    mode: str  # implementation or conversion
    verdict: Verdict
    sentence: str
    facts: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    text: Text | None = None
    continuations: list[Continuation] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    reproduce: str = ""
    clock: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        """The JSON document, schema `dsv4-parity/checkpoint/1` (`parity/report/checkpoint_schema.json`)."""
        return {"schema": SCHEMA, "command": "checkpoint", "exit_code": self.verdict.exit_code} | plain(self)
