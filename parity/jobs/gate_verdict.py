"""From the cells of a matrix to gaps, verdict and sentence."""

from __future__ import annotations

from ..beside.plan import GPU
from ..candidates.adapters.problems import NEEDS_METAL
from ..gate.conditions import named
from ..gate.defects import Defect
from ..gate.diagnosis import Hypothesis
from ..gate.lives import CACHES, LIVES, SERVED
from ..gate.loading import PUBLISHED
from ..gate.matrix import NOT_ASKED
from ..gate.results import Beyond, Cell, Deviation, Gap, GateReport
from ..results import Verdict, overall

FIRST_REVISION = "D076-missing"
# What kinds of candidates are known not to offer. (transformers loads packed weights where accelerate is installed.)
NOT_OFFERED_BY = {"dsv4_mlx": (), "hf": ("mtp", CACHES, *SERVED, "weights.fp8", "weights.fp4")}
BAD = (Verdict.DIVERGES, Verdict.CRASHED)
WORDS = {
    "oneshot": "one call without a cache",
    "cached": "one call with a cache",
    "decode": "decode after a prompt",
    "chunks": "chunks",
    "batch": "a batch of two",
    LIVES: "a life of its caches",
    GPU: "the GPU",
}


def gaps_of(cells: list[Cell], missing: list[str], lacking: list[Gap], require: set[str]) -> list[Gap]:
    """What was not offered, each once: whole schedules, then mechanisms."""
    gaps = []
    for schedule in missing:
        said = next(cell.sentence for cell in cells if cell.schedule == schedule)
        gaps.append(Gap(schedule, f"{WORDS[schedule]} is not offered. Every attempt ended so: {said}"))
    seen = set(missing)
    for cell in cells:
        if cell.verdict is Verdict.COVERAGE_GAP and cell.schedule not in missing and cell.mechanism not in seen:
            seen.add(cell.mechanism)
            said = cell.sentence if cell.sentence == NOT_ASKED else f"was not judged: {cell.sentence}"
            gaps.append(Gap(cell.mechanism, f"{cell.mechanism} {said}"))
    gaps += lacking
    for gap in gaps:
        gap.required = gap.what in require
    return gaps


def follow_on(report: GateReport, hypothesis: Hypothesis) -> None:
    """Unexplained red cells behind a red mechanism that they need may only follow from it."""
    red = {cell.mechanism for cell in report.cells if cell.verdict is Verdict.DIVERGES}
    needs = {mechanism.name: mechanism.needs for mechanism in report.mechanisms}
    for cell in report.cells:
        if cell.verdict is Verdict.DIVERGES and not cell.explained_by:
            cell.because = [name for name in needs[cell.mechanism] if name in red]


def _lacking(report: GateReport) -> list[Cell]:
    """Cells that a candidate of this kind is known to offer and that were not judged."""
    if report.candidate.kind not in NOT_OFFERED_BY:
        return []
    known = {row.name for row in report.mechanisms if row.beyond}
    known |= {*NOT_OFFERED_BY[report.candidate.kind]}
    return [cell for cell in report.cells if cell.verdict is Verdict.COVERAGE_GAP and cell.mechanism not in known]


def set_apart(report: GateReport, known: dict[str, Defect]) -> None:
    """List what deviates where no published checkpoint goes, a row each."""
    for row in report.mechanisms:
        cells = [cell for cell in report.cells if cell.mechanism == row.name and cell.verdict in BAD]
        if row.beyond and cells:
            names = list(dict.fromkeys(name for cell in cells for name in cell.explained_by))
            titles = [named(known, name).title for name in names]
            schedules = [cell.schedule for cell in cells]
            report.beyond.append(Beyond(row.name, schedules, row.beyond, cells[0].sentence, names, titles))


def conclude(report: GateReport, names: str = "any") -> None:
    """The verdict and its sentence, from the rows that published checkpoints need."""
    apart = {row.name for row in report.mechanisms if row.beyond}
    counted = [
        cell for cell in report.cells if cell.verdict is not Verdict.COVERAGE_GAP and cell.mechanism not in apart
    ]
    judged = [cell for cell in counted if cell.schedule != GPU]
    refused = [one for one in report.loading if one.family == PUBLISHED and one.state == "does not load"]
    report.verdict = overall([cell.verdict for cell in judged])
    lacking = _lacking(report)
    name, required = report.candidate.name, [gap for gap in report.gaps if gap.required]
    bad = next((cell for cell in judged if cell.verdict in BAD), None)
    if bad is not None:
        report.first_deviation = Deviation(bad.mechanism, bad.schedule, bad.sentence)
        title = next(m.title for m in report.mechanisms if m.name == bad.mechanism)
        said = bad.sentence.rstrip(".")
        verb = "deviates" if bad.verdict is Verdict.DIVERGES else "fails"
        report.sentence = f"{name} {verb} first in {bad.mechanism} ({title}), under {WORDS[bad.schedule]}: {said}."
    elif names == "raw" and refused:
        report.verdict = Verdict.DIVERGES
        said = refused[0].sentence.rstrip(".")
        report.sentence = f"{name} does not load published checkpoints ({refused[0].form}): {said}."
    elif report.verdict is Verdict.PARITY and required:
        report.verdict = Verdict.COVERAGE_GAP
        said = required[0].sentence.rstrip(".")
        report.sentence = f"{name} agrees wherever it was judged, but {required[0].what} was required: {said}."
    elif report.verdict is Verdict.PARITY and lacking:
        report.verdict = Verdict.COVERAGE_GAP
        report.sentence = (
            f"Only {len(report.cells) - len(lacking)} of {len(report.cells)} cells that {name} is known to offer were "
            f"judged ({lacking[0].mechanism} under {WORDS[lacking[0].schedule]}: {lacking[0].sentence.rstrip('.')})."
        )
    elif report.verdict is Verdict.PARITY:
        rows = len({cell.mechanism for cell in judged})
        report.sentence = (
            f"{name} computes what the reference computes: {rows} mechanisms, {len(judged)} cells, every one agrees."
        )
        if report.beyond:
            found = [f"{one.mechanism} ({', '.join(one.defects) or 'unexplained'})" for one in report.beyond]
            report.sentence += f" Beyond published configs it deviates in {', '.join(found)}."
        if report.gaps:
            report.sentence += f" Not judged: {', '.join(gap.what for gap in report.gaps)}."
        _beside(report, [cell for cell in counted if cell.schedule == GPU])
    else:
        needs = next((cell.sentence for cell in report.cells if NEEDS_METAL in cell.sentence), None)
        report.verdict = Verdict.ENVIRONMENT if needs else report.verdict
        report.sentence = needs or f"Nothing of {name} could be compared."
    if any(FIRST_REVISION in entry.defects for entry in report.diagnosis):
        report.notes.append(
            "The shared expert is not clamped: that is what the first published revision (2026-04-24) computes; "
            "revisions since 2026-04-27 clamp it."
        )


def _beside(report: GateReport, column: list[Cell]) -> None:
    """What the GPU says of a port that is right on the CPU."""
    bad = next((cell for cell in column if cell.verdict in BAD), None)
    if bad is None:
        agree = sum(cell.verdict is Verdict.PARITY for cell in column)
        report.sentence += f" On the GPU {agree} of {len(column)} mechanisms agree within its own errors." * bool(
            column
        )
        return
    report.verdict = Verdict.DEVICE
    report.first_deviation = Deviation(bad.mechanism, bad.schedule, bad.sentence)
    title = next(m.title for m in report.mechanisms if m.name == bad.mechanism)
    report.sentence = (
        f"{report.candidate.name} is right on the CPU, and on the GPU beyond what the GPU's own errors explain, first "
        f"in {bad.mechanism} ({title}): {bad.sentence.rstrip('.')}. A kernel is wrong there, not the maths."
    )
