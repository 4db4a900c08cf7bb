"""The matrix: every probe under every schedule, the candidate's logits against the reference's."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..candidates.adapters.problems import AteMemory, CandidateProblem, Died, Hung, MissingImports, NotOffered, Raised
from ..results import Verdict
from .families import Family
from .loading import lost_packing
from .results import Cell

# A candidate that dies or hangs this often is not asked again: each time costs a whole time limit.
PATIENCE = 3
NOT_ASKED = "was not asked: the candidate hung or died too often before"


class Engine(Protocol):
    """Whatever runs a candidate: its own process, or for dsv4_mlx with a defect, this one. `dtype` is that of the last
    logits."""

    dtype: str

    def load(self, folder: Path) -> None: ...

    def run(self, schedule: str, ids: np.ndarray, calls: Iterable[int], cached: bool) -> np.ndarray: ...

    def mtp(self, schedule: str, ids: np.ndarray, calls: Iterable[int], cached: bool) -> np.ndarray: ...


@dataclass
class Matrix:
    """Cells in order, by (mechanism, schedule) the logits of those that gave some of the right shape, and which of them
    the candidate says that it does not offer."""

    cells: list[Cell] = field(default_factory=list)
    logits: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    refused: set[tuple[str, str]] = field(default_factory=set)
    troubles: int = 0

    def red(self, mechanism: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.mechanism == mechanism and cell.verdict is Verdict.DIVERGES]


def judge_probe(engine: Engine, family: Family, folder: Path, matrix: Matrix) -> None:
    """Load the probe's checkpoint into the candidate and add a cell for each schedule."""
    probe = family.probe
    if matrix.troubles >= PATIENCE:
        matrix.cells += [_failed(probe.mechanism, s, "", NotOffered(NOT_ASKED)) for s in probe.schedules]
        return
    try:
        family.write(folder)
        if lost_packing(family, folder):
            said = NotOffered(f"packed weights as published have no form in the names of family {family.spelling}")
            matrix.cells += [_failed(probe.mechanism, s, "", said) for s in probe.schedules]
            return
        engine.load(folder)
    except CandidateProblem as problem:
        matrix.troubles += isinstance(problem, (Died, Hung, AteMemory))
        for schedule in probe.schedules:
            cell = _failed(probe.mechanism, schedule, "could not load the probe's checkpoint", problem)
            if probe.optional and isinstance(problem, Raised):
                cell.verdict = Verdict.COVERAGE_GAP
            matrix.cells.append(cell)
    else:
        matrix.cells += [_cell(engine, family, schedule, matrix) for schedule in probe.schedules]
    finally:  # not earlier: a candidate that died is loaded again
        shutil.rmtree(folder, ignore_errors=True)


def _cell(engine: Engine, family: Family, schedule: str, matrix: Matrix) -> Cell:
    mechanism = family.probe.mechanism
    if matrix.troubles >= PATIENCE:
        return _failed(mechanism, schedule, "", NotOffered(NOT_ASKED))
    try:
        logits = ask(engine, family, schedule)
    except CandidateProblem as problem:
        matrix.troubles += isinstance(problem, (Died, Hung, AteMemory))
        if isinstance(problem, NotOffered):  # what raises is crashed, wherever it does
            matrix.refused.add((mechanism, schedule))
        return _failed(mechanism, schedule, "", problem)
    cell = judge(family, schedule, logits)
    if "float" not in engine.dtype:
        cell.verdict, cell.ratio = Verdict.DIVERGES, float("inf")
        cell.sentence = f"gave logits of type {engine.dtype}, where floating-point ones were asked for"
    if logits.shape == family.exact[: family.rows(schedule)].shape:
        matrix.logits[mechanism, schedule] = logits
    return cell


def ask(engine: Engine, family: Family, schedule: str) -> Tensor:
    """The candidate's logits. Raises CandidateProblem."""
    ids = family.ids[: family.rows(schedule)].numpy().astype(np.int32)
    calls, cached = family.probe.calls_of(schedule), schedule != "oneshot"
    run = engine.mtp if family.probe.mtp else engine.run
    return torch.from_numpy(run(schedule, ids, calls, cached))


def judge(family: Family, schedule: str, logits: Tensor) -> Cell:
    """Measure logits [rows, tokens, V]; what cannot be measured diverges, and the sentence says why."""
    mechanism, rows = family.probe.mechanism, family.rows(schedule)
    clear, expected = family.clear[:rows], family.exact[:rows]
    cell = Cell(
        mechanism, schedule, Verdict.DIVERGES, tokens=int(clear.sum()), left_out=int((~clear).sum()), ratio=float("inf")
    )
    if logits.shape != expected.shape:
        cell.sentence = f"gave logits of shape {tuple(logits.shape)} where {tuple(expected.shape)} was asked for"
        return cell
    if not logits.isfinite().all():
        cell.first_token = int((~logits.isfinite()).any(-1).any(0).nonzero()[0])
        cell.sentence = f"gave logits that are not finite, from token {cell.first_token} on"
        return cell
    if not clear.any():
        cell.verdict, cell.ratio = Verdict.INCONCLUSIVE, 0.0
        cell.sentence = "every token hangs on a choice that rounding decides"
        return cell
    m = family.measure(schedule, logits)
    cell.ratio, cell.error_rms, cell.error_max = m.ratio, m.error_rms, m.error_max
    cell.limit_rms, cell.limit_max, cell.null_rms, cell.null_max = m.limit_rms, m.limit_max, m.null_rms, m.null_max
    cell.floor_rms, cell.factor_rms, cell.factor_max, cell.reason = (
        m.floor_rms,
        m.rule.rms,
        m.rule.maximum,
        m.rule.reason,
    )
    if m.ratio <= 1:
        cell.verdict = Verdict.PARITY
        return cell
    error = (logits.double() - expected).abs().amax(-1).masked_fill(~clear, 0)
    beyond = (error > min(m.limit_max, float(error.max()) / 2)).any(0).nonzero()
    cell.first_token = int(beyond[0])
    share = m.error_rms / m.scale if m.scale else float("inf")
    cell.sentence = (
        f"logits differ from token {cell.first_token} on: RMS error {m.error_rms:.2e} ({share:.1%} of their size), "
        f"limit {m.limit_rms:.2e}"
    )
    return cell


def _failed(mechanism: str, schedule: str, doing: str, problem: CandidateProblem) -> Cell:
    verdict = Verdict.COVERAGE_GAP if isinstance(problem, (NotOffered, MissingImports)) else Verdict.CRASHED
    return Cell(mechanism, schedule, verdict, f"{doing}: {problem}" if doing else str(problem))


def close_gaps(matrix: Matrix, schedules: Iterable[str]) -> list[str]:
    """Schedules that the candidate says it does not offer whatever it is given, though it runs otherwise."""
    missing = []
    runs = {cell.mechanism for cell in matrix.cells if cell.verdict in (Verdict.PARITY, Verdict.DIVERGES)}
    for schedule in schedules:
        cells = [cell for cell in matrix.cells if cell.schedule == schedule and cell.mechanism in runs]
        if len(cells) > 1 and all((cell.mechanism, schedule) in matrix.refused for cell in cells):
            missing.append(schedule)
    return missing
