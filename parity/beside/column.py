"""The gate's column `gpu`: each mechanism's worst cell there, and the first tensor that is off."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..candidates.adapters import Target
from ..candidates.adapters.problems import NEEDS_METAL, CandidateProblem
from ..candidates.process import Process
from ..gate import confirm
from ..gate.families import Family
from ..gate.filling import Filling
from ..gate.lives import CACHES, CHECKPOINT, LIVES, judge_lives
from ..gate.matrix import Matrix
from ..gate.probes import Probe
from ..gate.results import Cell, GateReport
from ..results import Verdict
from . import blind
from .plan import GPU, Plan

BAD = (Verdict.DIVERGES, Verdict.CRASHED)
WORST = (*BAD, Verdict.INCONCLUSIVE, Verdict.PARITY, Verdict.COVERAGE_GAP)  # what a mechanism's cell tells of


def fill(
    report: GateReport,
    plan: Plan,
    probes: list[Probe],
    written: tuple[str, str, str],
    open_engine: Callable[[], Process],
    progress: Callable[[str], None],
) -> None:
    """Judge the probes on the second device and add a cell a mechanism; `written`: the family of names, the form and
    the published roundings that the first device was judged with."""
    matrix, clock, tell = Matrix(), {}, lambda said: progress(f"on the {plan.second}, {said}")
    with tempfile.TemporaryDirectory(prefix="parity-", ignore_cleanup_errors=True) as scratch, plan.limits(plan.second):
        folder = Path(scratch, "checkpoint")
        try:
            with open_engine() as engine:
                filling = Filling(engine, matrix, report.seed, *written, folder, clock)
                families = filling.fill(probes, tell)
                if LIVES in report.schedules:  # the whole model was asked more of than its schedules
                    whole_again(engine, families[CHECKPOINT], matrix, report, folder, clock, tell)
                column = [worst(matrix, name) for name in dict.fromkeys(cell.mechanism for cell in matrix.cells)]
                red = follow_on(report, column)
                if red and red[0].mechanism in families:  # a life has no tensors
                    report.notes += first_tensor(engine, families[red[0].mechanism], folder / "again")
                if plan.accepted:
                    report.notes.append(blind.note(families, progress))
        except CandidateProblem as problem:
            column = [Cell(probes[0].mechanism, GPU, Verdict.CRASHED, str(problem))]
    report.schedules.append(GPU)
    report.cells += column
    report.clock |= {f"{GPU}_{name}": seconds for name, seconds in clock.items()}


def whole_again(
    engine: Process,
    whole: Family,
    matrix: Matrix,
    report: GateReport,
    folder: Path,
    clock: dict,
    progress: Callable[[str], None],
) -> None:
    """What the first device was asked of the whole model beside the schedules: lives, where it is green in them, and
    each schedule with mx.compile at work. The GPU runs other kernels for both."""
    green = [cell.mechanism for cell in report.cells if cell.schedule == LIVES and cell.verdict is Verdict.PARITY]
    if green and not matrix.out_of_patience(CACHES):
        began = time.monotonic()
        cells, _ = judge_lives(engine, whole, folder / CACHES, report.profile, report.seed, progress, green)
        matrix.cells += cells
        clock["caches_s"] = round(time.monotonic() - began, 2)
    if confirm.compiles(engine, GPU):
        progress("the whole model again, compiled")
        began = time.monotonic()
        confirm.confirm_compiled(engine, whole, matrix.cells, folder)
        clock["compiled_s"] = round(time.monotonic() - began, 2)


def worst(matrix: Matrix, mechanism: str) -> Cell:
    """The mechanism's verdict over all schedules, by its worst cell, whose sentence says under which."""
    cells = [cell for cell in matrix.cells if cell.mechanism == mechanism]
    verdict = next(one for one in WORST if any(cell.verdict is one for cell in cells))
    cell = max((cell for cell in cells if cell.verdict is verdict), key=lambda cell: cell.ratio)
    said = f"under {cell.schedule}, {cell.sentence}" if cell.sentence else ""
    return replace(cell, schedule=GPU, sentence=said)


def follow_on(report: GateReport, column: list[Cell]) -> list[Cell]:
    """Red cells of the column where the first device is green; others may only follow from what is wrong there too."""
    first = {cell.mechanism for cell in report.cells if cell.verdict in BAD}
    red = [cell for cell in column if cell.verdict in BAD]
    for cell in red:
        cell.because = [cell.mechanism] if cell.mechanism in first else []
    return [cell for cell in red if not cell.because]


def first_tensor(engine: Process, family: Family, folder: Path) -> list[str]:
    """A note on the first tensor of the reference that the port does not give there."""
    try:
        engine.load(family.write(folder))
        errors = confirm.layer_errors(engine, family)
    except CandidateProblem:
        return []  # what it does here says nothing that the column does not
    off = next((tap for tap in errors if tap.error > tap.limit), None)
    if off is None:
        return []
    where = f"the nearest to it, from {off.module}, is off" if off.module else "no module gives it"
    return [
        f"On the {GPU}, on the probe of {family.probe.mechanism}, the first tensor that differs is '{off.tap}': "
        f"{where}."
    ]


def judged(plan: Plan, work: Callable[[Plan], GateReport]) -> GateReport:
    """The report of `work` on the plan's devices; on the GPU alone, with a note, where the port refuses the CPU."""
    with plan.limits(plan.first):
        report = work(plan)
    if plan.second and report.verdict is Verdict.ENVIRONMENT and NEEDS_METAL in report.sentence:
        alone = plan.alone()
        with alone.limits(GPU):
            again = work(alone)
        again.notes.insert(0, f"It does not run on the CPU ({report.sentence.rstrip('.')}); the GPU alone was judged.")
        return again
    return report


def on(target: Target, device: str) -> Target:
    """The candidate on this device; where MLX knows one only, as it is."""
    return replace(target, device=device)
