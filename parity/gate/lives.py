"""The last rows of the gate's matrix: random lives of the port's caches, and requests through mlx-lm itself, judged in
the candidate's process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
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
PHASES = {"quick": 1, "full": 4, "exhaustive": 12}  # requests of each row that mlx-lm drives
# The keys of lives.offers.OFFERS.
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
# By row: the key of lives.served.NEEDS (whose module, too, takes seconds to import) and what mlx-lm does.
SERVED = {
    "serving.steps": ("steps", "mlx-lm's generate_step: prompts in pieces of 1, 3, 64 and 2048 tokens"),
    "serving.batches": ("batches", "mlx-lm's BatchGenerator: unequal requests that join, leave and come back"),
    "serving.turns": ("turns", "mlx-lm's store of prompts: second turns, shared beginnings"),
}

ROWS = (CACHES, *SERVED)
UNCLEAR = "its lives differ, each time asked, where a choice of experts or rows hangs by a rounding"
MOST_TOKENS = 1000  # of a life; those that are drawn are shorter
MOST_ASKED = 12  # times that one request is put, with more tokens left out each time


def mechanisms(needs: list[str]) -> list[Mechanism]:
    """The rows; whatever is wrong between calls may show in them too."""
    rows = {CACHES: "rewinds, copies, files, batches that merge and split"}
    rows |= {name: title for name, (_, title) in SERVED.items()}
    return [Mechanism(name, title, "7.1, 8", needs) for name, title in rows.items()]


def judge_lives(
    engine: Process,
    family: Family,
    folder: Path,
    profile: str,
    seed: int,
    progress: Callable[[str], None],
    rows: Sequence[str] = ROWS,
) -> tuple[list[Cell], list[Gap]]:
    """The cell of each of these rows, and what the caches do not offer."""
    cells, gaps = [], []
    lived = Lived(family.probe.config, family.tensors, family.probe.dtype, family.simulation, itself=True)
    family.write(folder)
    try:
        for row in rows:
            progress("random lives of the caches" if row == CACHES else f"{SERVED[row][1].partition(':')[0]} around it")
            cell, lacking = _cell(engine, family, folder, row, _requests(row, profile, seed), lived)
            cells.append(cell)
            gaps += lacking
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return cells, gaps


def _cell(
    engine: Process, family: Family, folder: Path, row: str, requests: list[dict], lived: Lived
) -> tuple[Cell, list[Gap]]:
    cell, gaps = Cell(row, LIVES, Verdict.PARITY), []
    try:
        engine.load(folder)
        for asked in requests:
            answer = _lives(engine, lived, asked)
            if answer is None:
                cell.verdict, cell.sentence = Verdict.INCONCLUSIVE, UNCLEAR
                break
            cell.tokens += answer.tokens
            cell.ratio = max(cell.ratio, answer.ratio)
            gaps = [Gap(f"{CACHES}.{name}", said) for name, said in answer.gaps.items()]
            if answer.broken:
                said, sort, raised = answer.broken
                cell.verdict = Verdict.CRASHED if raised else Verdict.DIVERGES
                cell.ratio, cell.sentence, cell.life = float("inf"), f"{said} ({sort})", [*answer.script]
                break
        if row != CACHES and gaps:  # the cell tells it
            cell.verdict, cell.sentence, gaps = Verdict.COVERAGE_GAP, gaps[0].sentence, []
        elif cell.verdict is Verdict.PARITY and not cell.tokens:
            cell.verdict, cell.sentence = Verdict.INCONCLUSIVE, "no token was judged in any life"
    except CandidateProblem as problem:
        offered = not isinstance(problem, (NotOffered, MissingImports))
        cell.verdict, cell.sentence = Verdict.CRASHED if offered else Verdict.COVERAGE_GAP, str(problem)
    return cell, gaps


def _requests(row: str, profile: str, seed: int) -> list[dict]:
    if row != CACHES:
        seeds = range(seed * PHASES[profile], (seed + 1) * PHASES[profile])
        return [{"do": "serve", "schedule": SERVED[row][0], "seed": one} for one in seeds]
    requests, sequences, operations = WORK[profile]
    work = {"do": "lives", "sequences": sequences, "operations": operations}
    return [work | {"seed": seed * requests + index, "generation": index == 0} for index in range(requests)]


def _lives(engine: Process, lived: Lived, asked: dict) -> Lives | None:
    """One request's lives, a deviation confirmed on its own tokens in the reference, which the candidate's process does
    not have; where it is not, the same lives again without those tokens. None where that has no end."""
    largest, unclear = lived.limit, []
    for _ in range(MOST_ASKED):
        answer = engine.lives(asked, {"largest": largest, "scale": lived.scale, "unclear": unclear})
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
