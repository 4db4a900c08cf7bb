"""The mutation score: every known defect put into dsv4_mlx, judged by the gate's probes, one by one (method, section
7)."""

from __future__ import annotations

import difflib
import os
import random
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path

import torch

import dsv4_mlx

from ..candidates import told
from ..candidates.adapters import Target, load_adapter
from ..candidates.adapters.problems import Raised
from ..candidates.containment import die_with_parent
from ..candidates.watching import Watch
from ..environment import use_one_thread
from ..errors import BadInput
from ..gate.conditions import CONDITIONS, Call, active, named, variants
from ..gate.defects import Defect, catalogue
from ..gate.defects.patching import applied, edited
from ..gate.diagnosis import Diagnoser, patched_logits
from ..gate.families import Family
from ..gate.filling import reference
from ..gate.matrix import Matrix, judge_probe
from ..gate.probes import of_profile, registry
from ..gate.results import Diagnosis
from ..lines.answers import BETWEEN, LIKELY, UNSEEN
from ..lines.locating import Locator, findings
from ..lines.scoring import RIGHT, WRONG, changed, verdict
from ..results import Verdict

SCHEMA = "dsv4-parity/defects/1"
MARKS = {RIGHT: "yes", WRONG: "**no**", "": "–"}
FEW = 20


@dataclass
class DefectResult:
    """One defect: whether a cell went red, whether the diagnosis named it and nothing else, and by which probe. line:
    whether the line that it changes was called so (`lines.scoring`)."""

    id: str
    title: str
    mechanism: str
    killed: bool = False
    blamed_rightly: bool = False
    probe: str | None = None
    schedules: list[str] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    line: str = ""
    reason: str = ""


@dataclass
class Score:
    """All defects; those that cannot be put into dsv4_mlx carry the reason and do not count."""

    profile: str
    seed: int
    defects: list[DefectResult] = field(default_factory=list)
    clock: dict = field(default_factory=dict)

    @property
    def judged(self) -> list[DefectResult]:
        return [result for result in self.defects if not result.reason]

    @property
    def exit_code(self) -> int:
        """0 where every judged defect was killed and blamed rightly and no line wrongly, else 1; 5 where none was
        judged."""
        if not self.judged:
            return Verdict.COVERAGE_GAP.exit_code
        return int(not all(r.killed and r.blamed_rightly and r.line != WRONG for r in self.judged))

    def to_dict(self) -> dict:
        killed, blamed = self._counts()
        return {
            "schema": SCHEMA,
            "command": "defects",
            "exit_code": self.exit_code,
            "profile": self.profile,
            "seed": self.seed,
            "judged": len(self.judged),
            "killed": killed,
            "blamed_rightly": blamed,
            "lines": self._lines(),
            "defects": [asdict(result) for result in self.defects],
            "clock": self.clock,
        }

    def _counts(self) -> tuple[int, int]:
        return sum(r.killed for r in self.judged), sum(r.blamed_rightly for r in self.judged)

    def _lines(self) -> dict[str, int]:
        return {kind: sum(r.line == kind for r in self.judged) for kind in (RIGHT, LIKELY, BETWEEN, UNSEEN, WRONG)}

    def summary(self) -> str:
        killed, blamed = self._counts()
        lines = ", ".join(f"{kind} {count}" for kind, count in self._lines().items())
        rest = len(self.defects) - len(self.judged)
        return (
            f"{self.profile}: of {len(self.judged)} defects, {killed} killed, {blamed} blamed rightly; line: {lines}"
            + (f"; {rest} cannot be judged here, for the reason in the table." if rest else ".")
        )

    def text(self) -> str:
        """For the terminal: what was missed, or all where it is little, then the counts."""
        right = lambda r: r.killed and r.blamed_rightly and r.line != WRONG  # noqa: E731
        shown = [r for r in self.judged if len(self.judged) <= FEW or not right(r)]
        lines = [
            f"  {r.id}: {'killed' if r.killed else 'survived'}, first red {r.probe} ({', '.join(r.schedules)}), "
            f"named {', '.join(r.named) or 'nothing'}, the line: {r.line or 'not looked for'}"
            for r in shown
        ]
        return "\n".join([*lines, self.summary()])

    def markdown(self) -> str:
        """The table of the docs."""
        rows = [f"| {r.id} | {r.title} | {r.mechanism} | {_columns(r)} |" for r in self.defects]
        head = "| id | defect | mechanism | killed | named | line | red under |\n|---|---|---|---|---|---|---|"
        devices = "[devices.md](devices.md#the-null-on-a-device) lists which of them the errors of other devices hide."
        return "\n".join([self.summary(), "", devices, "", head, *rows]) + "\n"


def _columns(result: DefectResult) -> str:
    if result.reason:
        return f"– | – | – | {result.reason}"
    marks = _mark(result.killed), _mark(result.blamed_rightly), MARKS.get(result.line, result.line)
    return " | ".join([*marks, ", ".join(result.schedules)])


def _mark(yes: bool) -> str:
    return "yes" if yes else "**no**"


class Patched:
    """dsv4_mlx with defects, in this process."""

    def __init__(self, defects: list[Defect]):
        self.defects = defects
        self.port = load_adapter(Target("dsv4_mlx", "dsv4_mlx"))
        self.port.start()

    def load(self, folder: Path) -> None:
        with applied([one for one in self.defects if not one.condition], "dsv4_mlx"):
            self._raising(self.port.load, folder)

    def run(self, schedule: str, ids, calls, cached: bool):
        return self._logits(self.port.run, ids, calls, cached)

    def mtp(self, schedule: str, ids, calls, cached: bool):
        return self._logits(self.port.mtp, ids, calls, cached)

    def lines(self, folder: Path, run: Callable, *asked) -> told.Watched:
        """As Process.lines."""
        texts, package = edited(self.defects, "dsv4_mlx"), Path(dsv4_mlx.__file__).parent
        source = lambda file: texts.get(Path(file).name) or Path(file).read_text(encoding="utf-8")  # noqa: E731
        watch = Watch(lambda file: Path(file).parent == package, source)
        with watch.watching():
            self.load(folder)
            run(*asked)
        flat, index = watch.told()
        return told.watched(index, flat)

    def _logits(self, run: Callable, ids, calls, cached: bool):
        asked = [Call(index, tokens, len(ids), cached) for index, tokens in enumerate(calls)]
        self.port.around = lambda index: applied(active(self.defects, asked[index]), "dsv4_mlx")
        logits, self.dtype = self._raising(run, ids, calls, cached)
        return logits

    def _raising(self, do: Callable, *args):
        try:
            return do(*args)
        except Exception as error:
            raise Raised(f"raised {type(error).__name__}: {error}") from error


def measure_defects(profile: str, seed: int, names: list[str], progress: Callable[[str], None]) -> Score:
    """Judge dsv4_mlx with each defect in turn. Raises BadInput for an unknown name."""
    known = catalogue()
    for name in names:
        base, at, condition = name.partition("@")
        if base in known and at and condition not in CONDITIONS:
            raise BadInput(f"--id does not know the condition of '{name}'; known: {', '.join(CONDITIONS)}.")
        if base not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean '{near[0]}'?" if near else "docs/defects.md lists them."
            raise BadInput(f"--id does not know '{name}'; {hint}")
    score = Score(profile, seed)
    wanted = [named(known, name) for name in names] if names else list(known.values())
    workers = min(os.cpu_count() or 1, len(wanted))
    with ProcessPoolExecutor(workers, get_context("spawn"), prepare_worker) as pool:
        tasks = [pool.submit(judged, defect.id, profile, seed) for defect in wanted]
        try:
            for index, (defect, task) in enumerate(zip(wanted, tasks, strict=True), start=1):
                progress(f"{index} of {len(wanted)}: {defect.id}")
                score.defects.append(task.result())
        except BaseException:  # nobody waits for the rest
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in active_children():
                worker.kill()
            raise
    return score


def prepare_worker() -> None:
    """A process that judges defects: one thread, and no life beyond the harness's."""
    die_with_parent()
    use_one_thread()


def some_conditional(count: int, seed: int) -> list[str]:
    """So many defects at random, each under a condition: ids as D028-dropped@one. Only those that their own probe shows
    and that do not act in all of its calls: what is read when a model is built knows no calls."""
    choice, known, found = random.Random(seed), catalogue(), []
    able = [one for one in variants(known) if one.reference and one.mlx]
    while len(found) < count and able:
        one = able.pop(choice.randrange(len(able)))
        probe = registry()[one.mechanism]
        base = known[one.id.partition("@")[0]]
        if probe.profile == "quick" and not probe.beyond and _tells(one, base, reference(probe, seed)):
            found.append(one.id)
    return found


def _tells(one: Defect, base: Defect, family: Family) -> bool:
    """Whether the probe shows the defect under its condition in dsv4_mlx, and in the reference another than the plain
    one."""
    matrix = Matrix()
    with tempfile.TemporaryDirectory(prefix="parity-", ignore_cleanup_errors=True) as scratch:
        judge_probe(Patched([one]), family, Path(scratch, "probe"), matrix)
    if {cell.verdict for cell in matrix.cells} - {Verdict.PARITY} != {Verdict.DIVERGES}:  # or it fails: then it is none
        return False
    runs = ((patched_logits(family, s, [d], family.probe.dtype) for d in (one, base)) for s in family.probe.schedules)
    return any(not torch.equal(some, always) for some, always in runs)


def judged(name: str, profile: str, seed: int) -> DefectResult:
    """Judge dsv4_mlx with one defect."""
    defect = named(catalogue(), name)
    result = DefectResult(defect.id, defect.title, defect.mechanism)
    result.reason = defect.mlx_reason or defect.reference_reason or defect.outside
    if result.reason:
        return result
    with tempfile.TemporaryDirectory(prefix="parity-", ignore_cleanup_errors=True) as scratch:
        engine = Patched([defect])
        diagnoser = judged_until_named(engine, profile, seed, Path(scratch))
        result.line = _line(engine, diagnoser, defect, Path(scratch))
    red = [cell for cell in diagnoser.matrix.cells if cell.verdict in (Verdict.DIVERGES, Verdict.CRASHED)]
    if not red:
        return result
    result.killed, result.probe = True, red[0].mechanism
    result.schedules = [cell.schedule for cell in red if cell.mechanism == result.probe]
    result.named = list(diagnoser.beam[0].defects)
    result.blamed_rightly = result.named == [defect.id] and result.probe == defect.mechanism
    return result


def _line(engine: Patched, diagnoser: Diagnoser, defect: Defect, scratch: Path) -> str:
    """Whether the line is found that the defect changes."""
    explained = list(diagnoser.beam[0].defects)
    for cell in diagnoser.matrix.cells:
        if cell.verdict is Verdict.DIVERGES:
            cell.explained_by = explained
    found = findings(diagnoser.matrix.cells, [Diagnosis(explained, [], "")], diagnoser.families)
    if not found:
        return ""
    known = diagnoser.known | diagnoser.conditional
    wrong = Locator(engine, diagnoser.families, known, scratch / "lines").locate(found[0])
    return verdict(wrong, changed(defect, Path(dsv4_mlx.__file__).parent))


def judged_until_named(engine, profile: str, seed: int, scratch: Path) -> Diagnoser:
    """Probes in order until one hypothesis is left: a full matrix would say the same and take five times as long."""
    diagnoser = Diagnoser({}, Matrix())
    for probe in of_profile(profile):
        found = diagnoser.families[probe.mechanism] = reference(probe, seed)
        judge_probe(engine, found, scratch / probe.mechanism, diagnoser.matrix)
        diagnoser.visit(probe.mechanism)
        if diagnoser.beam[0].defects and len(diagnoser.beam) == 1:
            break
    return diagnoser
