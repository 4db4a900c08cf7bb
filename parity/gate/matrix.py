"""The matrix: every probe under every schedule, the candidate's logits against the reference's."""

from __future__ import annotations

import shutil
from collections import Counter
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
from .loading import load_packed
from .results import Cell, Loading

# A candidate that dies this often on one probe is not asked for more of it, nor of any once so many probes ended so.
PATIENCE, LONG_PATIENCE = 2, 8
HANGS = 3  # each costs a whole limit of time: one ends a probe, so many end the run
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
    the candidate says that it does not offer, or gave of each call's last token alone.

    loading: what it did with packed weights, by family. troubles: how often it died or hung, by probe.
    """

    cells: list[Cell] = field(default_factory=list)
    logits: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    refused: set[tuple[str, str]] = field(default_factory=set)
    ends_only: set[tuple[str, str]] = field(default_factory=set)
    loading: list[Loading] = field(default_factory=list)
    troubles: Counter = field(default_factory=Counter)
    hangs: int = 0

    def red(self, mechanism: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.mechanism == mechanism and cell.verdict is Verdict.DIVERGES]

    def replace(self, mechanism: str, other: Matrix) -> None:
        """Take the other's word on a mechanism that was judged last."""
        self.cells[:] = [cell for cell in self.cells if cell.mechanism != mechanism] + other.cells
        self.logits = {key: given for key, given in self.logits.items() if key[0] != mechanism} | other.logits
        self.refused = {key for key in self.refused if key[0] != mechanism} | other.refused
        self.ends_only = {key for key in self.ends_only if key[0] != mechanism} | other.ends_only

    def out_of_patience(self, mechanism: str) -> bool:
        """Whether the candidate died or hung too often to be asked for this."""
        all_over = len(+self.troubles) >= LONG_PATIENCE or self.hangs >= HANGS
        return all_over or self.troubles[mechanism] >= PATIENCE

    def note(self, mechanism: str, problem: CandidateProblem) -> None:
        """Count a death."""
        hung = isinstance(problem, Hung)
        if hung or isinstance(problem, (Died, AteMemory)):
            self.troubles[mechanism] += PATIENCE if hung else 1
            self.hangs += hung


def judge_probe(engine: Engine, family: Family, folder: Path, matrix: Matrix) -> None:
    """Load the probe's checkpoint into the candidate and add a cell for each schedule."""
    probe = family.probe
    if matrix.out_of_patience(probe.mechanism):
        matrix.cells += [_failed(probe.mechanism, s, "", NotOffered(NOT_ASKED)) for s in probe.schedules]
        return
    try:
        if "quantization_config" in probe.config:
            load_packed(engine, family, folder, matrix.loading)
        else:
            engine.load(family.write(folder))
    except CandidateProblem as problem:
        matrix.note(probe.mechanism, problem)
        for schedule in probe.schedules:
            cell = _failed(probe.mechanism, schedule, "could not load the probe's checkpoint", problem)
            if probe.beyond and isinstance(problem, Raised):
                cell.verdict = Verdict.COVERAGE_GAP
            matrix.cells.append(cell)
    else:
        matrix.cells += [_cell(engine, family, schedule, matrix) for schedule in probe.schedules]
    finally:  # not earlier: a candidate that died is loaded again
        shutil.rmtree(folder, ignore_errors=True)


def _cell(engine: Engine, family: Family, schedule: str, matrix: Matrix) -> Cell:
    mechanism = family.probe.mechanism
    if matrix.out_of_patience(mechanism):
        return _failed(mechanism, schedule, "", NotOffered(NOT_ASKED))
    try:
        logits = ask(engine, family, schedule)
    except CandidateProblem as problem:
        matrix.note(mechanism, problem)
        if isinstance(problem, NotOffered):  # what raises is crashed, wherever it does
            matrix.refused.add((mechanism, schedule))
        return _failed(mechanism, schedule, "", problem)
    cell = judge(family, schedule, logits)
    if "float" not in engine.dtype:
        cell.verdict, cell.ratio = Verdict.DIVERGES, float("inf")
        cell.sentence = f"gave logits of type {engine.dtype}, where floating-point ones were asked for"
    calls = family.probe.calls_of(schedule)
    if is_ends_only(family, logits, calls):
        matrix.ends_only.add((mechanism, schedule))
        logits = spread(family, logits, calls)
    if logits.shape == family.exact[: family.rows(schedule)].shape:
        matrix.logits[mechanism, schedule] = logits
    return cell


def ask(engine: Engine, family: Family, schedule: str) -> Tensor:
    """The candidate's logits. Raises CandidateProblem."""
    ids = family.ids[: family.rows(schedule)].numpy().astype(np.int32)
    calls, cached = family.probe.calls_of(schedule), schedule != "oneshot"
    run = engine.mtp if family.probe.mtp else engine.run
    return torch.from_numpy(run(schedule, ids, calls, cached))


def is_ends_only(family: Family, logits: Tensor, calls: tuple[int, ...]) -> bool:
    """Whether these are logits [rows, calls, V] of each call's last token, as the specification's own model gives."""
    tokens, vocabulary = family.exact.shape[1:]
    return len(calls) < tokens and logits.dim() == 3 and logits.shape[1:] == (len(calls), vocabulary)


def ends_of(family: Family, calls: tuple[int, ...]) -> Tensor:
    """[tokens]: which tokens end a call."""
    ends = torch.zeros(family.exact.shape[1], dtype=torch.bool)
    ends[torch.tensor(calls).cumsum(0) - 1] = True
    return ends


def spread(family: Family, logits: Tensor, calls: tuple[int, ...]) -> Tensor:
    """Logits of call ends [rows, calls, V] at their places among all tokens [rows, tokens, V], the others 0."""
    whole = torch.zeros(len(logits), *family.exact.shape[1:], dtype=logits.dtype)
    whole[:, ends_of(family, calls)] = logits
    return whole


def judge(family: Family, schedule: str, logits: Tensor, calls: tuple[int, ...] | None = None) -> Cell:
    """Measure logits [rows, tokens, V], or those of each call's last token; what cannot be measured diverges, and the
    sentence says why. `calls` are the schedule's, unless told otherwise."""
    mechanism, rows = family.probe.mechanism, family.rows(schedule)
    calls = calls or family.probe.calls_of(schedule)
    clear, expected, seen = family.clear[:rows], family.exact[:rows], None
    if len(logits) == rows and is_ends_only(family, logits, calls):
        seen = ends_of(family, calls)
        clear, logits = clear & seen, spread(family, logits, calls)
    cell = Cell(
        mechanism,
        schedule,
        Verdict.DIVERGES,
        tokens=int(clear.sum()),
        left_out=int((~family.clear[:rows]).sum()),
        ratio=float("inf"),
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
    m = family.measure(schedule, logits, clear=None if seen is None else family.clear & seen)
    cell.ratio, cell.error_rms, cell.error_max = m.ratio, m.error_rms, m.error_max
    cell.limit_rms, cell.limit_max, cell.null_rms, cell.null_max = m.limit_rms, m.limit_max, m.null_rms, m.null_max
    dominant = family.dominant
    cell.floor_rms, cell.factor_rms, cell.factor_max, cell.reason = (
        m.floor_rms,
        m.rule.rms,
        m.rule.maximum,
        m.rule.reason + (f"; on this device the null is as large as the errors of {dominant}" if dominant else ""),
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
