"""`parity gate`: judge anybody's port."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..environment import use_one_thread
from ..errors import BadInput
from ..gate.results import Candidate, GateReport
from ..results import Verdict
from . import options as shared
from . import outputs
from .progress import Progress

EPILOG = """\
candidates:
  path/to/mlx_lm/models/deepseek_v4.py   a model file; relative imports resolve in its tree, or in the installed mlx-lm
  path/to/port/models/deepseek_v4.py     a model file in a package of its own, imported as part of that
  path/to/mlx-lm, path/to/mlx-vlm        a checkout or an unpacked release
  mlx_vlm.models.deepseek_v4             a module that is installed here
  hf                                     Hugging Face's model
  dsv4_mlx                               this project's model
  path/to/recording                      what a port gave, kept by --record

examples:
  parity gate dsv4_mlx
  parity gate mlx_vlm.models.deepseek_v4 --profile full --html report.html --json report.json
  parity gate ../mlx-lm/mlx_lm/models/deepseek_v4.py --require oneshot --require batch --junit junit.xml
  parity gate hf --baseline last-week.json
  parity gate path/to/port.py --record given     then, anywhere and without the port: parity gate given

The report is a matrix: a row for each mechanism, in the order in which they build on each other, a column for each way
in which tokens reach the model (oneshot: one call without a cache; cached: one call with it; decode: token by token
after a prompt; chunks; batch). Each row has a tiny checkpoint of its own, whose weights make the logits depend on that
mechanism and on rows above it. The first red cell is where to look. What the port does not offer is a gap: named, and
no failure unless --require names it.
"""

FILES = ("json", "html", "markdown", "junit", "sarif")


def add(commands) -> None:
    """The command's options."""
    gate = shared.new(
        commands,
        "gate",
        help="judge anybody's port of DeepSeek-V4",
        description="Judge a port: one verdict with an exit code, the first mechanism that deviates, and the name of "
        "the known mistake that it behaves like. The port runs in a process of its own.",
        epilog=EPILOG,
    )
    gate.add_argument("candidate", metavar="CANDIDATE", help="what to judge; see below")
    shared.profile_and_seed(gate, "draw other weights and tokens (default 0)")
    for name, what in (
        ("html", "a page for the browser"),
        ("markdown", "a summary for a CI job"),
        ("junit", "JUnit XML, one test a cell"),
        ("sarif", "SARIF for code scanning"),
    ):
        gate.add_argument(f"--{name}", type=shared.named, metavar="FILE", help=f"write {what}")
    gate.add_argument(
        "--baseline", type=shared.named, metavar="OLD.json", help="an earlier --json report: show what moved since"
    )
    gate.add_argument(
        "--bundle", type=shared.named, metavar="DIR", help="write the failing case as a folder that stands alone"
    )
    gate.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="WHAT",
        help="fail if this schedule or mechanism is not offered, e.g. oneshot, batch, mtp; may be given again",
    )
    gate.add_argument(
        "--timeout",
        type=shared.positive,
        default=60.0,
        metavar="S",
        help="seconds of processor time that one call may take (default 60); four times as many on the clock",
    )
    gate.add_argument(
        "--memory",
        type=shared.positive,
        default=8.0,
        metavar="GB",
        help="memory that it may take (default 8)",
    )
    gate.add_argument(
        "--family",
        default="any",
        metavar="NAMES",
        help="any (default): a port that takes the names of conversions only is judged on those; raw: it must load the "
        "published ones",
    )
    gate.add_argument(
        "--simulation",
        metavar="WHAT",
        help="the published roundings that it is held to: none, those of key-value rows and of the indexer (rows), or "
        "also of what packed matrices read (published); auto (default): those that it is seen to simulate",
    )
    gate.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="MECHANISM",
        help="judge this mechanism and those that its probe needs, or this row of lives (caches, serving.turns, ...) "
        "and the whole model, nothing else; may be given again",
    )
    gate.add_argument(
        "--defects",
        type=shared.named,
        metavar="DIR",
        help="a folder of drafts for the catalogue of defects, looked for beside the known ones",
    )
    gate.add_argument(
        "--strict", action="store_true", help="what no published checkpoint needs (another eps, odd sides) counts too"
    )
    gate.add_argument(
        "--mend-imports",
        action="store_true",
        help="go on where a file lacks names of typing, collections.abc or dataclasses: supply them, and say so",
    )
    gate.add_argument(
        "--record",
        type=shared.named,
        metavar="DIR",
        help="keep all that the port gave as a folder, which can be judged in its place",
    )
    shared.devices(gate)
    # What is not given is None: a recording has its own.
    gate.set_defaults(command=command, problem=problem, profile=None, seed=None, family=None, simulation=None)


def command(options: argparse.Namespace, started: float) -> int:
    """The verdict's exit code."""
    from ..report import document

    for name in FILES:
        if getattr(options, name):
            document.check_target(getattr(options, name), f"--{name}")
    if [getattr(options, name) for name in FILES].count("-") > 1:
        raise BadInput("Only one document can go to standard output; give the others a file.")
    old = _baseline(options.baseline) if options.baseline else None
    for option in ("bundle", "record"):
        if getattr(options, option):
            _check_folder(Path(getattr(options, option)), f"--{option}")
    if options.bundle and options.record and os.path.abspath(options.bundle) == os.path.abspath(options.record):
        raise BadInput("--bundle and --record need a folder each.")
    from ..beside import plan as planning
    from ..beside.column import judged
    from ..gate.defects import DefectError, read_drafts
    from ..gate.probes import PROFILES
    from ..jobs.gate import judge
    from ..jobs.gate_command import SIMULATIONS, Asked, judgeable, requirable

    shared.one_of("--profile", "quick" if options.profile is None else options.profile, list(PROFILES))
    shared.one_of("--family", "any" if options.family is None else options.family, ["any", "raw"])
    shared.one_of("--simulation", options.simulation or "auto", [*SIMULATIONS])
    for what in options.only:
        shared.one_of("--only", what, judgeable())
    try:
        drafts = read_drafts(Path(options.defects)) if options.defects else {}
    except DefectError as error:
        raise BadInput(f"--defects {options.defects}: {error}") from error
    for what in options.require:
        shared.one_of("--require", what, requirable())
    plan = planning.of(options.candidate, shared.device(options), options.accept_noise, outputs.say)
    use_one_thread()
    imported = time.monotonic() - started
    with Progress() as progress:
        work = lambda plan: judge(  # noqa: E731
            options.candidate,
            Asked(
                profile=options.profile,
                seed=options.seed,
                names=options.family,
                simulation=options.simulation,
                require=tuple(options.require),
                only=tuple(options.only),
                strict=options.strict,
                mend=options.mend_imports,
                timeout=options.timeout,
                memory=options.memory,
            ),
            progress,
            drafts=drafts,
            bundle_folder=Path(options.bundle) if options.bundle else None,
            record_folder=Path(options.record) if options.record else None,
            plan=plan,
        )
        report = judged(plan, work)
    report.clock = {"import_s": round(imported, 2)} | report.clock
    return finish(report, options, old)


def _check_folder(folder: Path, option: str) -> None:
    """Raise BadInput where a folder could not be made, before the work is done."""
    from ..report import document

    if os.path.lexists(folder):
        raise BadInput(f"{folder} exists; give {option} a folder that is still to be made.")
    if not document.may_be_made(folder):
        raise BadInput(f"{folder} cannot be made; give {option} another folder, in one that you may write to.")


def finish(report: GateReport, options: argparse.Namespace, old: object = None) -> int:
    """Show the terminal view, and write every file that was asked for."""
    return outputs.end(report.verdict.exit_code, outputs.deliver(files(report, options, old, show=True)))


def files(
    report: GateReport, options: argparse.Namespace, old: object = None, show: bool = False
) -> list[Callable[[], None]]:
    """What gives the report to the outside, a step each; with `show`, the terminal's view first."""
    from ..report import baseline, document, gate_table, html, junit, markdown, sarif

    content = json.loads(json.dumps(report.to_dict()))
    if old is not None:
        baseline.apply(content, old)
    asked = [name for name in FILES if getattr(options, name, None)]
    steps = []
    if show and "-" not in [getattr(options, name) for name in asked]:
        steps.append(lambda: gate_table.show(content, outputs.Terminal()))
    renderings = {
        "json": document.text_of,
        "html": html.page,
        "markdown": markdown.summary,
        "junit": junit.xml,
        "sarif": lambda content: json.dumps(sarif.log(content), indent=1) + "\n",
    }
    write = lambda name: document.write_text(renderings[name](content), getattr(options, name))  # noqa: E731
    return steps + [partial(write, name) for name in asked]


def _baseline(path: str) -> object:
    from ..report import baseline, document

    old = document.read(path)
    baseline.check(old)
    return old


def problem(options: argparse.Namespace, verdict: Verdict, sentence: str) -> list[Callable[[], None]]:
    """What writes the documents of a gate that could not start; of several for standard output, the first."""
    to_output = [name for name in FILES if getattr(options, name) == "-"]
    for name in to_output[1:]:
        setattr(options, name, None)
    candidate = Candidate(options.candidate, "unknown")
    return files(GateReport(candidate, options.profile or "quick", options.seed or 0, verdict, sentence), options)
