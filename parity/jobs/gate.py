"""`parity gate`: judge anybody's port, say where it goes wrong, name the defect."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..beside import blind, column
from ..beside.column import on
from ..beside.plan import GPU, Plan
from ..candidates.adapters import resolve
from ..candidates.process import CandidateProblem, MissingImports, Process
from ..environment import check_environment
from ..errors import BadInput, stopped_by
from ..gate import bundle, confirm, keys, loading, playing
from ..gate.defects import Defect, catalogue
from ..gate.diagnosis import Diagnoser
from ..gate.explaining import explain
from ..gate.families import Family
from ..gate.filling import Filling, reference
from ..gate.lives import CACHES, CHECKPOINT, LIVES, OFFERED, ROWS, judge_lives, mechanisms
from ..gate.matrix import NOT_ASKED, Engine, Matrix, ask, close_gaps
from ..gate.probes import SCHEDULES, Probe, needed, of_profile
from ..gate.recording import Recorder
from ..gate.results import Candidate, Cell, Gap, GateReport, Mechanism
from ..lines.locating import Locator, findings
from ..results import Verdict
from .gate_command import Asked
from .gate_verdict import conclude, follow_on, gaps_of, set_apart

Progress = Callable[[str], None]


def judge(
    target: str,
    asked: Asked = Asked(),  # noqa: B008 # frozen
    progress: Progress = lambda text: None,
    environment: dict | None = None,
    drafts: dict[str, Defect] | None = None,
    bundle_folder: Path | None = None,
    record_folder: Path | None = None,
    plan: Plan = Plan(),  # noqa: B008 # frozen
) -> GateReport:
    """Judge a candidate, in a process of its own, or the recording of one. Raises BadInput where the target is none.

    ``drafts``: defects beside the catalogue's. ``bundle_folder``: where the smallest case that fails is written.
    ``record_folder``: where a recording is kept. ``plan``: the devices.
    """
    resolved = on(resolve(target), plan.first)
    played = playing.read(Path(resolved.path)) if resolved.kind == "recording" else None
    if played is None:
        asked = asked.settled()
        candidate = Candidate(target, resolved.kind)
    else:
        if bundle_folder or record_folder:
            raise BadInput(f"{target} is a recording; --bundle and --record ask the port itself.")
        asked = asked.settled(played.settings)
        candidate = Candidate(f"{target} (a recording of {played.name})", played.kind)
    report = GateReport(candidate, asked.profile, asked.seed, Verdict.INCONCLUSIVE, "")
    report.environment = (check_environment() if environment is None else environment) | plan.facts
    report.reproduce = asked.command(target, recorded=played is not None) + plan.options
    if played is not None:
        report.notes += played.notes(report.environment)
    probes = chosen(asked.profile, asked.only)
    counted = lambda probe: asked.strict or probe.mechanism in asked.require  # noqa: E731
    report.mechanisms = [
        Mechanism(p.mechanism, p.title, p.spec, list(p.needs), "" if counted(p) else p.beyond) for p in probes
    ]
    with tempfile.TemporaryDirectory(prefix="parity-", ignore_cleanup_errors=True) as scratch:
        started = time.monotonic()
        progress(f"starting {target}")
        try:
            mended = []
            mending = (lambda said: (report.notes.append(said), mended.append(said))) if asked.mend else None
            start = lambda one: Process(one, Path(scratch), asked.timeout, asked.memory, mending)  # noqa: E731
            engine = played or start(resolved)
            if record_folder is not None:
                engine = Recorder(engine, mended)
            with engine as process:
                _describe(report.candidate, process.facts)
                report.clock["start_s"] = round(time.monotonic() - started, 2)
                known = catalogue() | (drafts or {})
                beside = partial(
                    column.fill, report, plan, probes, open_engine=lambda: start(on(resolved, plan.second))
                )
                families = _judge(process, probes, report, Path(scratch), asked, progress, known, beside, plan)
                if bundle_folder is not None:
                    _write_bundle(process, families, report, bundle_folder, progress)
        except MissingImports as problem:
            report.verdict, report.sentence = Verdict.ENVIRONMENT, str(problem)
        except KeyboardInterrupt as stop:
            judged = len({cell.mechanism for cell in report.cells})
            by = stopped_by(stop)
            report.verdict = Verdict.INTERRUPTED
            report.sentence = (
                f"Interrupted{by} after {judged} of {len(report.mechanisms)} mechanisms of {candidate.name}."
            )
        except CandidateProblem as problem:
            report.verdict, report.sentence = Verdict.CRASHED, f"{candidate.name} could not be judged. {problem}"
        report.clock["total_s"] = round(time.monotonic() - started, 2)
        if record_folder is not None:
            _write_recording(engine, report, asked, record_folder, progress)
    return report


def chosen(profile: str, only: Sequence[str]) -> list[Probe]:
    """The profile's probes; or these mechanisms of whatever profile, and what their probes need; for rows of lives the
    whole model's."""
    if not only:
        return of_profile(profile)
    wanted = {CHECKPOINT if name in ROWS else name for name in only}
    wanted = wanted.union(*(needed(name) for name in only if name not in ROWS))
    return [probe for probe in of_profile("exhaustive") if probe.mechanism in wanted]


def _judge(
    engine: Process,
    probes: list[Probe],
    report: GateReport,
    scratch: Path,
    asked: Asked,
    progress: Progress,
    catalogue_: dict[str, Defect],
    beside: Callable,
    plan: Plan,
) -> dict[str, Family]:
    report.schedules = list(SCHEDULES)
    matrix = Matrix()
    report.cells = matrix.cells  # so that an interrupted run tells what it found
    found = _checkpoint(engine, probes, report, scratch, asked.names)
    if found is None:
        return {}
    filling = Filling(engine, matrix, report.seed, *found, asked.simulation, scratch / "checkpoint", report.clock)
    families = filling.fill(probes, progress)
    report.notes += filling.notes()
    report.cells = [*matrix.cells]
    report.loading += matrix.loading
    if matrix.ends_only:
        report.notes.append("Gives the logits of each call's last token alone; only these were judged.")
    missing = close_gaps(matrix, SCHEDULES)
    lacking = []
    rows = [row for row in ROWS if not asked.only or row in asked.only]
    if CHECKPOINT in families and rows:
        lacking = _live(engine, families[CHECKPOINT], matrix, report, rows, scratch, progress)
    report.gaps = gaps_of(report.cells, missing, lacking, {*asked.require})
    judged = {*SCHEDULES, *(row.name for row in report.mechanisms), *(f"{CACHES}.{name}" for name in OFFERED)}
    for name in sorted({*asked.require} - judged):
        report.gaps.append(Gap(name, f"{name} is no part of the profile {report.profile}", required=True))
    red = [cell for cell in matrix.cells if cell.verdict is Verdict.DIVERGES]
    if red:
        progress("looking for the defects that explain it")
        began = time.monotonic()
        diagnoser = Diagnoser(families, matrix, {name: one for name, one in catalogue_.items() if one.reference})
        hypothesis = diagnoser.diagnose()
        report.diagnosis = explain(diagnoser, hypothesis, {row.name for row in report.mechanisms if row.beyond})
        report.clock["diagnosis_s"] = round(time.monotonic() - began, 2)
        follow_on(report, hypothesis)
        _look_inside(engine, families, red[0], scratch, report)
        _find_lines(engine, families, report, diagnoser, scratch, progress)
        began = time.monotonic()
        report.keys = keys.first_picture(families, matrix)
        report.clock["keys_s"] = round(time.monotonic() - began, 2)
    set_apart(report, catalogue_)
    if CHECKPOINT in families and not asked.only and confirm.compiles(engine) and report.candidate.kind != "hf":
        progress("the whole model again, compiled")
        began = time.monotonic()
        report.notes += confirm.confirm_compiled(engine, families[CHECKPOINT], report.cells, scratch / "checkpoint")
        report.clock["compiled_s"] = round(time.monotonic() - began, 2)
    if plan.second:
        beside((*found, filling.simulation), progress=progress)
    elif plan.accepted:
        report.notes.append(blind.note(families, progress))
    conclude(report, asked.names)
    return families


def _find_lines(
    engine: Engine,
    families: dict[str, Family],
    report: GateReport,
    diagnoser: Diagnoser,
    scratch: Path,
    progress: Progress,
) -> None:
    """Where in its own code each finding is."""
    began = time.monotonic()
    asked = findings(report.cells, report.diagnosis, families)
    if isinstance(engine, playing.Player):
        report.lines = [engine.wrong_line(one.cell.mechanism, one.cell.schedule, one.defects) for one in asked]
        return
    if asked:
        progress("looking for the lines")
    known = diagnoser.known | diagnoser.conditional
    locator = Locator(engine, families, known, scratch / "checkpoint" / "lines")
    report.lines = [locator.locate(one) for one in asked]
    report.clock["lines_s"] = round(time.monotonic() - began, 2)


def _checkpoint(
    engine: Process, probes: list[Probe], report: GateReport, scratch: Path, names: str
) -> tuple[str, str] | None:
    """The family in whose names the probes are written, and the form; a note where these are not the published ones in
    float32. None where the published names were asked for and do not load, which is the verdict then."""
    families = loading.TRIED[:1] if names == "raw" else loading.TRIED
    first = lambda form: reference(probes[0], report.seed, form)  # noqa: E731
    found, report.loading = loading.find(engine, first, scratch / "checkpoint" / "names", families)
    said = report.loading[0].sentence.rstrip(".") if report.loading else ""
    if found is None and names == "raw":
        report.verdict = Verdict.DIVERGES
        report.sentence = f"{report.candidate.name} does not load published names: {said}."
        return None
    if found is None:
        report.notes.append("Loads the names of no family; the probes say why, in the published names.")
        return loading.PUBLISHED, loading.PLAIN
    name, form = found
    if name != loading.PUBLISHED:
        title = next(one.title for one in report.loading if one.family == name)
        report.notes.append(f"Does not load published names: {said}. Judged on family {name}, {title}.")
    if form != loading.PLAIN:
        report.notes.append(f"Does not load plain float32 weights: {said}. Judged with {FORMS[form]}.")
    return found


FORMS = {loading.EXPERTS: "the experts in fp4", loading.PACKED: "experts in fp4 and the other matrices in fp8"}


def _live(
    engine: Process,
    family: Family,
    matrix: Matrix,
    report: GateReport,
    rows: list[str],
    scratch: Path,
    progress: Progress,
) -> list[Gap]:
    """Add these rows of the caches; what they do not offer."""
    began = time.monotonic()
    if matrix.out_of_patience(CACHES):
        cells, lacking = [Cell(row, LIVES, Verdict.COVERAGE_GAP, NOT_ASKED) for row in rows], []
    else:
        folder = scratch / "checkpoint" / CACHES
        cells, lacking = judge_lives(engine, family, folder, report.profile, report.seed, progress, rows)
    report.mechanisms += [one for one in mechanisms([one.name for one in report.mechanisms]) if one.name in rows]
    report.schedules.append(LIVES)
    report.cells += cells
    report.clock["caches_s"] = round(time.monotonic() - began, 2)
    return lacking


def _write_bundle(
    engine: Engine, families: dict[str, Family], report: GateReport, folder: Path, progress: Progress
) -> None:
    """The first deviation in numbers, one that nothing explains before others, as a folder; a note says where it is, or
    why there is none."""
    differ = [cell for cell in report.cells if cell.life or (cell.verdict is Verdict.DIVERGES and cell.limit_max > 0)]
    cells = [cell for cell in differ if cell.schedule != GPU]  # the script computes where whoever runs it does
    cells.sort(key=lambda cell: (bool(cell.life), bool(cell.explained_by)))  # what nothing explains needs a case most
    if not cells:
        why = "what differs does so on the GPU alone" if differ else "no cell gave logits that differ"
        report.notes.append(f"There is no bundle: {why}.")
        return
    script = "life.py" if cells[0].life else "show.py"
    progress(f"writing the smallest case of {cells[0].mechanism} to {folder}")
    try:
        if cells[0].life:
            bundle.write_life(report.candidate, engine, families[CHECKPOINT], cells[0], folder)
        else:
            wrong = bundle.wrong_line(report.lines, cells[0])
            bundle.write(report.candidate, engine, families[cells[0].mechanism], cells[0], folder, wrong)
    except (BadInput, CandidateProblem) as problem:  # what the matrix holds stands
        report.notes.append(f"There is no bundle: {problem}")
    else:
        report.notes.append(f"{folder} holds the smallest case; run python {folder / script}.")


def _write_recording(engine: Recorder, report: GateReport, asked: Asked, folder: Path, progress: Progress) -> None:
    """What the candidate gave, as a folder; a note only where there is none: a recording's report is the same."""
    if report.verdict is Verdict.INTERRUPTED:
        report.notes.append("There is no recording: the run was interrupted.")
        return
    progress(f"writing what it gave to {folder}")
    try:
        engine.write(folder, report, asked.settings)
    except BadInput as problem:  # what the matrix holds stands
        report.notes.append(f"There is no recording: {problem}")


def _describe(candidate: Candidate, facts: dict) -> None:
    candidate.source, candidate.line = facts.get("file"), facts.get("line")
    candidate.libraries = facts.get("versions", {})


def _look_inside(engine: Engine, families: dict[str, Family], cell: Cell, scratch: Path, report: GateReport) -> None:
    """Ask the first red cell again, because a candidate that answers otherwise cannot be judged by any of its numbers;
    then find the first tensor that no module of it gives."""
    found = families[cell.mechanism]
    try:
        engine.load(found.write(scratch / "checkpoint" / "again"))
        first, second = (ask(engine, found, cell.schedule) for _ in range(2))
        if first.shape == second.shape and float((first - second).abs().nan_to_num().max()) > cell.limit_max > 0:
            report.notes.append(f"The same tokens gave other logits when asked again ({cell.mechanism}).")
        report.layers = confirm.layer_errors(engine, found)
    except CandidateProblem:
        return  # what it does here says nothing that the matrix does not
    off = next((tap for tap in report.layers if tap.error > tap.limit), None)
    if off is not None:
        report.notes.append(
            f"Inside the port, on the probe of {cell.mechanism}, every tensor before '{off.tap}' was found; "
            + (f"the nearest to that one, from {off.module}, is off." if off.module else "that one no module gives.")
        )
