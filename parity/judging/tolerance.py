"""The rule that turns errors into a verdict: error against exact, relative to what the same maths does in the same
type.

Three tensors (method, section 2): *exact* is the reference in float64, *baseline* the reference in the run's type,
*candidate* what is judged. The limit comes from the *null*: the baseline and the same maths with other rounding.
Nothing here is typed per tap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..results import Tap

SMALL = 64  # elements under which an RMS ratio means nothing by itself


@dataclass(frozen=True)
class Rule:
    """How far beyond the null an error may be: RMS and maximum of one example, RMS pooled over all of them; and why."""

    rms: float
    maximum: float
    pooled: float
    reason: str


RULES = {
    "float32": Rule(
        rms=2.0,
        maximum=3.0,
        pooled=1.5,
        reason="the order of summation alone moves float32 errors; the null holds sequential and blocked orders, "
        "the factor covers fused operations and other maths libraries",
    ),
    "bfloat16": Rule(
        rms=1.5,
        maximum=2.5,
        pooled=1.2,
        reason="output rounding dominates in bfloat16, so two correct programs have a ratio near 1; one example is "
        "a small sample, all of them together are sharp",
    ),
    "float64": Rule(
        rms=4.0,
        maximum=8.0,
        pooled=4.0,
        reason="the reference against itself; the null is a float64 run with other rounding",
    ),
}

CONVERSION = "conversion"  # of a type of its own: what honest rounding of the weights does is the null
RULES[CONVERSION] = Rule(
    rms=2.0,
    maximum=3.0,
    pooled=2.0,
    reason="the null holds two honest roundings of the original's weights to the conversion's formats; another "
    "honest one may leave twice their error in a group of weights, and so in what is computed from them",
)

EXACT = Rule(rms=0.0, maximum=0.0, pooled=0.0, reason="decoding and rounding are defined bit by bit")

# The errors of one token's channels are not independent (one rounding early on reaches all of them), so the sample
# size of an RMS is its number of rows. The RMS of `rows` values scatters by 1/sqrt(2 rows); candidate and null both
# scatter, and four deviations of that are 4/sqrt(rows).
SCATTER = 4.0


@dataclass(frozen=True)
class Measurement:
    """One tap of one example: errors against exact, the limit they are held to, and where the limit comes from."""

    elements: int
    rows: int
    rule: Rule
    scale: float
    floor_rms: float
    floor_max: float
    null_rms: float
    null_max: float
    error_rms: float
    error_max: float
    limit_rms: float
    limit_max: float

    @property
    def ratio(self) -> float:
        """Error over limit, the worse of RMS and maximum; above 1 is a deviation."""
        return max(_over(self.error_rms, self.limit_rms), _over(self.error_max, self.limit_max))


def rule_for(null_rms: float, scale: float, dtype: str) -> Rule:
    """The rule of the type whose rounding the null shows.

    In a bfloat16 run some tensors stay wide (mixing coefficients, router scores); where the null is far below
    bfloat16's rounding of 2^-9, summation order dominates as in float32, and float32's rule holds.
    """
    if dtype == "bfloat16" and null_rms < scale * 2.0**-16:
        return RULES["float32"]
    return RULES[dtype]


def spacing(dtype: torch.dtype, value: float) -> float:
    """Distance between neighbouring numbers of a type at a magnitude."""
    if value == 0 or not math.isfinite(value):
        return torch.finfo(dtype).smallest_normal
    return torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(value))


def measure(exact: Tensor, baseline: Tensor, nulls: list[Tensor], candidate: Tensor, dtype: str) -> Measurement:
    """Judge one tensor. `baseline` keeps its own type, which sets the floor; all have exact's shape.

    Elements that are finite in exact, but not under every rounding, are no claim about the candidate and are left out;
    where that leaves nothing to compare, the error is infinite: nothing was shown.

    The floor is one rounding to the output's type: spacing/sqrt(12) for the RMS of 64 elements and more, a whole
    spacing for fewer and for the maximum. An error below it cannot be told from a correct rounding.
    """
    undefined = ~torch.stack([tensor.isfinite() for tensor in (exact, baseline, *nulls)]).all(0)
    exact, baseline, candidate, *nulls = (
        tensor.masked_fill(undefined, 0) for tensor in (exact, baseline, candidate, *nulls)
    )
    exact = exact.double()
    scale, highest = rms(exact), peak(exact)
    whole = spacing(baseline.dtype, scale)
    floor_rms = whole if exact.numel() < SMALL else whole / math.sqrt(12)
    floor_max = spacing(baseline.dtype, highest)
    family = [tensor.double() - exact for tensor in (baseline, *nulls)]
    null_rms, null_max = max(map(rms, family)), max(map(peak, family))
    error = candidate.double() - exact
    if undefined.numel() and undefined.all():
        error = error.fill_(torch.nan)
    rule = rule_for(null_rms, scale, dtype)
    rows = exact.numel() // max(exact.shape[-1], 1) if exact.ndim else 1
    slack = 1 + SCATTER / math.sqrt(max(rows, 1))
    return Measurement(
        elements=exact.numel() - int(undefined.sum()),
        rows=rows,
        rule=rule,
        scale=scale,
        floor_rms=floor_rms,
        floor_max=floor_max,
        null_rms=null_rms,
        null_max=null_max,
        error_rms=rms(error),
        error_max=peak(error),
        limit_rms=max(rule.rms * slack * null_rms, floor_rms),
        limit_max=max(rule.maximum * slack * null_max, floor_max),
    )


def pooled_ratio(measurements: list[Measurement]) -> float:
    """RMS over all examples of error / null, over the pooled factor; each example counts by its rows, against its own
    null."""
    rows = sum(m.rows for m in measurements)
    if rows < SMALL:
        return 0.0
    total = sum(m.rows * _over(m.error_rms, max(m.null_rms * m.rule.pooled, m.floor_rms)) ** 2 for m in measurements)
    return math.sqrt(total / rows) / (1 + SCATTER / math.sqrt(rows))


def rms(x: Tensor) -> float:
    """Root mean square; infinite where a value is not finite, 0 when empty."""
    value = x.square().mean().sqrt().item() if x.numel() else 0.0
    return value if math.isfinite(value) else math.inf


def peak(x: Tensor) -> float:
    """Largest magnitude; infinite where a value is not finite, 0 when empty."""
    value = x.abs().max().item() if x.numel() else 0.0
    return value if math.isfinite(value) else math.inf


def _over(error: float, limit: float) -> float:
    return 0.0 if error == 0 else error / limit if limit > 0 else math.inf


def tap_of(name: str, measurements: list[Measurement]) -> Tap:
    """One tap over all examples; errors and limits are those of the worst one."""
    worst = max(measurements, key=lambda m: m.ratio)
    return Tap(
        name=name,
        examples=len(measurements),
        elements=sum(m.elements for m in measurements),
        error_rms=worst.error_rms,
        error_max=worst.error_max,
        limit_rms=worst.limit_rms,
        limit_max=worst.limit_max,
        null_rms=worst.null_rms,
        null_max=worst.null_max,
        floor_rms=worst.floor_rms,
        factor_rms=worst.rule.rms,
        factor_max=worst.rule.maximum,
        reason=worst.rule.reason,
        worst_ratio=worst.ratio,
        pooled_ratio=pooled_ratio(measurements),
    )
