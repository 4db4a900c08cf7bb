"""`parity run` on the plan's devices: the CPU's rows, then the GPU's."""

from __future__ import annotations

from collections.abc import Callable

from ..results import Report, Verdict
from .plan import CPU, GPU, Plan


def run_on(plan: Plan, work: Callable[[bool], Report]) -> Report:
    """One report of `work`, which is told whether the reference is to be held to itself first. Where the CPU agrees and
    the GPU does not, the verdict is `device` and the finding is the GPU's."""
    with plan.here(plan.first):
        report = _marked(work(True), plan.first or CPU)
    report.environment = report.environment | plan.facts
    if not plan.second or report.verdict in (Verdict.INTERRUPTED, Verdict.INCONCLUSIVE):
        return report
    with plan.here(plan.second):
        other = _marked(work(False), plan.second)
    report.pairs += other.pairs
    report.layers += other.layers
    report.clock |= {f"{plan.second}_s": other.clock.get("total_s", 0.0)}
    if other.verdict is Verdict.INTERRUPTED:
        report.verdict, report.sentence = other.verdict, other.sentence
    elif report.verdict is Verdict.PARITY and other.verdict is not Verdict.PARITY:
        report.verdict, report.finding = Verdict.DEVICE, other.finding
        report.sentence = (
            "dsv4_mlx is right on the CPU, and on the GPU beyond what the GPU's own errors explain, so that a kernel "
            f"is wrong there and not the maths: {other.sentence}"
        )
    elif report.verdict is Verdict.PARITY:
        report.sentence += f" On the GPU {len(other.pairs)} of {len(other.pairs)} agree within its own errors."
    return report


def _marked(report: Report, device: str) -> Report:
    """Rows that know their device, and commands that ask for it again."""
    for row in (*report.pairs, *report.layers):
        row.device = device
    if device == GPU:
        failures = [row.failure for row in report.pairs if row.failure]
        for told in (*failures, *([report.finding] if report.finding else [])):
            told.reproduce += f" --device {GPU}" * bool(told.reproduce)
    return report
