"""The last row of the gate's matrix: random lives of the port's caches, judged in the candidate's process."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..candidates.adapters.problems import CandidateProblem, MissingImports, NotOffered
from ..candidates.process import Process
from ..candidates.told import Lives
from ..judging.lived import Lived
from ..results import Verdict
from .families import Family
from .results import Cell, Gap, Mechanism

CACHES, LIVES = "caches", "lives"
CHECKPOINT = "model.flash"  # the probe whose checkpoint lives, and is confirmed compiled: every kind of layer
# Requests, lives in each, operations in each life: a request must end within the limit of time.
WORK = {"quick": (1, 4, 15), "full": (10, 6, 30), "exhaustive": (50, 10, 30)}
# The keys of cache_offers.OFFERS, whose module takes seconds to import.
OFFERED = (
    "branch",
    "trim",
    "save_and_restore",
    "weigh",
    "merge",
    "extract",
    "filter",
    "extend",
    "ragged",
    "ragged_left",
)


UNCLEAR = "its lives differ, each time asked, where a choice of experts or rows hangs by a rounding"
MOST_TOKENS = 1000  # of a life; those that are drawn are shorter
MOST_ASKED = 12  # times that one request is put, with more tokens left out each time


def mechanism(needs: list[str]) -> Mechanism:
    """The row; whatever is wrong between calls may show in it too."""
    return Mechanism(CACHES, "rewinds, copies, files, batches that merge and split", "7.1, 8", needs)


def judge_lives(engine: Process, family: Family, folder: Path, profile: str, seed: int) -> tuple[Cell, list[Gap]]:
    """The cell, and what the caches do not offer."""
    cell, gaps = Cell(CACHES, LIVES, Verdict.PARITY), []
    requests, sequences, operations = WORK[profile]
    try:
        engine.load(family.write(folder))
        lived = Lived(family.probe.config, family.tensors, family.probe.dtype, family.simulation, itself=True)
        for request in range(requests):
            answer = _lives(engine, lived, sequences, operations, seed * requests + request, request == 0)
            if answer is None:
                cell.verdict, cell.sentence = Verdict.INCONCLUSIVE, UNCLEAR
                break
            cell.tokens += answer.tokens
            cell.ratio = max(cell.ratio, answer.ratio)
            gaps = [Gap(f"{CACHES}.{name}", said) for name, said in answer.gaps.items()]
            if answer.broken:
                said, sort, raised = answer.broken
                cell.verdict = Verdict.CRASHED if raised else Verdict.DIVERGES
                cell.ratio, cell.sentence = float("inf"), f"{said} ({sort})"
                break
        if cell.verdict is Verdict.PARITY and not cell.tokens:
            cell.verdict, cell.sentence = Verdict.INCONCLUSIVE, "no token was judged in any life"
    except CandidateProblem as problem:
        offered = not isinstance(problem, (NotOffered, MissingImports))
        cell.verdict, cell.sentence = Verdict.CRASHED if offered else Verdict.COVERAGE_GAP, str(problem)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return cell, gaps


def _lives(engine: Process, lived: Lived, sequences: int, operations: int, seed: int, generation: bool) -> Lives | None:
    """One request's lives, a deviation confirmed on its own tokens in the reference, which the candidate's process does
    not have; where it is not, the same lives again without those tokens. None where that has no end."""
    largest, unclear = lived.limit, []
    for _ in range(MOST_ASKED):
        limits = {"largest": largest, "scale": lived.scale, "unclear": unclear}
        answer = engine.lives(sequences, operations, seed, generation, limits)
        ids, ratio = answer.suspect or ([], 0.0)
        # What a candidate tells that no life of this checkpoint has needs no confirmation.
        if not 0 < len(ids) <= MOST_TOKENS or not all(0 <= one < lived.config["vocab_size"] for one in ids):
            return answer
        found = lived.examine(ids)
        if not found.clear[-1]:
            unclear = [*unclear, ids[: int(found.clear.long().argmin()) + 1]]
        elif ratio * largest <= found.limit:
            largest = found.limit
        else:
            return answer
    return None
