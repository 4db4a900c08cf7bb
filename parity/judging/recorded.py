"""A tensor against its recording: both carry the rounding of their own type, so the limit is that of both."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..results import GoldenTap
from . import oracle, undecided
from .tolerance import SCATTER, measure, peak, rms

# A recording and an implementation each carry the rounding of their own type.
BOTH_SIDES = 2.0


@dataclass
class Family:
    """The reference's runs of one thing: exact, baseline, with other rounding, and with undecided roundings moved."""

    exact: oracle.Observation
    baseline: oracle.Observation
    nulls: list[oracle.Observation]
    nudged: list[oracle.Observation] = field(default_factory=list)
    level: float = 0.0

    def tap(self, name: str) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        return (
            self.exact.taps[name],
            self.baseline.taps[name],
            [n.taps[name] for n in self.nulls],
            [n.taps[name] for n in self.nudged],
        )


def by_token(family: Family, tap: str, got: Tensor, recorded: Tensor, causal: bool) -> GoldenTap:
    """Exact arithmetic: RMS and maximum against the null, but for rows behind an undecided rounding.

    Those may differ by what its flip does. In a whole run (`causal`) a flip reaches every later token in ways that no
    few runs enumerate: from the first one on, only the RMS over all of them is held to the spread of the nudged runs.
    """
    exact, baseline, nulls, nudged = family.tap(tap)
    exact, error = exact.double(), got - recorded
    decided = torch.ones(error.shape[:2], dtype=torch.bool)
    if nudged:
        decided, noise = undecided.decided_rows(exact, baseline, [*nulls, *nudged])
        decided = decided.cummin(1)[0] if causal else decided
    limit_rms = limit_max = ratio = 0.0
    if decided.any():
        kept = [tensor[decided] for tensor in (exact, baseline, *nulls, *nudged)]
        measured = measure(kept[0], kept[1], kept[2:], kept[0] + error[decided], "float32")
        limit_rms, limit_max = BOTH_SIDES * measured.limit_rms, BOTH_SIDES * measured.limit_max
        ratio = max(measured.error_rms / limit_rms, measured.error_max / limit_max)
    beyond = ~decided
    if not error.isfinite().all():  # no comparison with NaN is true
        ratio = float("inf")
    elif beyond.any() and causal:
        spread = max(rms(run.double()[beyond] - exact[beyond]) for run in (*nulls, *nudged))
        ratio = max(ratio, rms(error[beyond]) / (limit_rms + undecided.FLIP_MARGIN * spread))
    elif beyond.any():
        allowed = limit_max + undecided.FLIP_MARGIN * noise
        ratio = max(ratio, float((undecided.largest_by_row(error) / allowed)[beyond].max()))
    flips = int((undecided.largest_by_row(error) > limit_max)[beyond].sum())
    undecided_share = float(beyond.double().mean()) if beyond.numel() else 0.0
    return GoldenTap("", "", rms(error), peak(error), limit_rms, limit_max, ratio, undecided_share, flips)


def by_rms(family: Family, tap: str, got: Tensor, recorded: Tensor, free: bool) -> GoldenTap:
    """Production arithmetic: RMS errors against exact, the implementation's beside the recording's beside the null.

    Where the recording chose freely (`free`), a handful of flipped choices makes up its error, and so the null's: their
    number scatters far more than the rounding of many elements does.
    """
    exact, baseline, nulls, _ = family.tap(tap)
    exact = exact.double()
    measured = measure(exact, baseline, nulls, got, "bfloat16")
    factor = measured.rule.pooled * (1 + SCATTER / max(measured.rows, 1) ** 0.5)
    recorded_error = rms(recorded - exact)
    limit = max(factor * recorded_error, measured.floor_rms)
    recording_limit = max((undecided.FLIP_MARGIN if free else factor) * measured.null_rms, measured.floor_rms)
    ratio = max(measured.error_rms / limit, recorded_error / recording_limit)
    note = ""
    if recorded_error > recording_limit:
        note = (
            f"the recording's RMS error against float64 is {recorded_error:.2e}, the reference's own at "
            f"most {measured.null_rms:.2e}"
        )
    return GoldenTap("", "", measured.error_rms, measured.error_max, limit, 0.0, ratio, 0.0, note=note)
