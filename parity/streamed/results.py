"""What a run over a checkpoint found, as plain data: every report of `parity checkpoint` is rendered from this."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..results import Tap, Verdict, plain

SCHEMA = "dsv4-parity/checkpoint/1"


TOP = 5  # tokens of a distribution that are compared as a set


@dataclass(frozen=True)
class Distance:
    """relative: RMS of the difference over RMS of the truth. cosine: of the whole tensors. largest: by magnitude."""

    relative: float
    cosine: float
    largest: float


@dataclass(frozen=True)
class Agreement:
    """Two models' next tokens over the same text, ``got`` against ``truth``.

    kl: mean KL divergence in nats; its 99th percentile; its largest. top1: share of positions with the same best token.
    topk: mean share of the TOP best that are shared. perplexity: of each on the text's own next tokens.
    """

    kl: float
    kl_99: float
    kl_largest: float
    top1: float
    topk: float
    perplexity_truth: float
    perplexity_got: float


@dataclass
class Choices:
    """What one module chose over all tokens: the router's experts, the indexer's rows.

    agreement: share of tokens with exactly the reference's set. ties: those that differ within the noise. illegal:
    those that differ beyond it.
    """

    what: str
    tokens: int
    agreement: float
    ties: int
    illegal: int


@dataclass(frozen=True)
class WeightRow:
    """Matrices of one kind in a conversion's stage, one for all experts' w1: how many, how they are stored, and their
    signal to quantisation noise in dB: of all together, of the worst, and of honest rounding to that format. ratio: the
    worst one's distance from what rounding explains, over its limit."""

    what: str
    stored: str
    count: int
    sqnr: float
    sqnr_lowest: float
    sqnr_honest: float
    ratio: float


@dataclass
class Stage:
    """One step of the model: the embedding, a block, the head.

    ratio: worst error over limit of the candidate alone, on the reference's input; it decides. isolated: its distance
    there, and isolated_baseline that of the reference in the same type. accumulated and accumulated_baseline: the
    same at the end of each one's own path, which explain and decide nothing. bytes: what it takes in the files. Of a
    conversion the baseline is the original's model with honestly rounded weights; weights: a row a kind of matrix;
    wrong: the tensors that rounding does not explain, a clause each.
    """

    name: str
    kind: str
    verdict: Verdict
    sentence: str = ""
    ratio: float = 0.0
    isolated: Distance | None = None
    isolated_baseline: Distance | None = None
    accumulated: Distance | None = None
    accumulated_baseline: Distance | None = None
    taps: list[Tap] = field(default_factory=list)
    choices: list[Choices] = field(default_factory=list)
    bytes: int = 0
    weights: list[WeightRow] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Continuation:
    """What dsv4_mlx continued a prompt with.

    prompt and text are the words of prompt_ids and ids, where there are some. margins: the best logit less the second
    at each step. ties: tokens other than what they were held to, within rounding; wrong: those beyond it; a clause
    each.
    """

    name: str
    prompt: str
    prompt_ids: list[int]
    ids: list[int]
    text: str
    margins: list[float]
    ties: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class CheckpointReport:
    """A whole run; `clock` holds everything that may differ between two runs with the same options.

    text: the candidate's next tokens against the exact reference's over the whole text; text_baseline: those of the
    reference in the run's type.
    """

    checkpoint: str
    verdict: Verdict
    sentence: str
    facts: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    stages: list[dict] = field(default_factory=list)  # each a Stage, as plain data
    text: Agreement | None = None
    text_baseline: Agreement | None = None
    continuations: list[dict] = field(default_factory=list)  # each a Continuation, as plain data
    notes: list[str] = field(default_factory=list)
    reproduce: str = ""
    clock: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        """The JSON document, schema `dsv4-parity/checkpoint/1` (`parity/report/checkpoint_schema.json`)."""
        return {"schema": SCHEMA, "command": "checkpoint", "exit_code": self.verdict.exit_code} | plain(self)
