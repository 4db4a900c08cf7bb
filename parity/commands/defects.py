"""`parity defects`: put every known defect into dsv4_mlx, and count what the gate finds."""

from __future__ import annotations

import argparse
import json
import time

from ..environment import check_environment, use_one_thread
from . import options as shared
from . import outputs
from .progress import Progress

EPILOG = """\
examples:
  parity defects                                   every defect against the quick probes
  parity defects --profile full --json defects.json
  parity defects --id D016 --id D028-dropped@one   the second in calls of one token only
  parity defects --conditional 40 --seed 1         so many at random, each under a condition

Each known defect is put into dsv4_mlx, and the gate judges it. Killed: a cell is red. Blamed rightly: the diagnosis
names this defect and nothing else, and the first red mechanism is the defect's own.
"""


def add(commands) -> None:
    """The command's options."""
    parser = shared.new(
        commands,
        "defects",
        help="put every known defect into dsv4_mlx: which ones does the gate find?",
        description="The mutation score: every known defect put into dsv4_mlx and judged.",
        epilog=EPILOG,
    )
    shared.profile_and_seed(parser, "draw other weights and tokens (default 0)")
    parser.add_argument(
        "--id", action="append", default=[], metavar="ID", help="only this defect; may be given again (default: all)"
    )
    parser.add_argument(
        "--conditional",
        type=shared.count,
        metavar="N",
        help="so many defects at random, each in some calls only: of one token, later ones, in batches, ...",
    )
    parser.add_argument(
        "--table", type=shared.named, metavar="FILE", help="write the table as Markdown, as the docs show it"
    )
    parser.set_defaults(command=command, problem=None)


def command(options: argparse.Namespace, started: float) -> int:
    """The score's exit code."""
    from ..report import document

    for name in ("json", "table"):
        if getattr(options, name):
            document.check_target(getattr(options, name), f"--{name}")
    from ..gate.probes import PROFILES
    from ..jobs.score import measure_defects, some_conditional

    shared.one_of("--profile", options.profile, list(PROFILES))
    check_environment()
    use_one_thread()
    with Progress() as progress:
        names = options.id + (some_conditional(options.conditional, options.seed) if options.conditional else [])
        score = measure_defects(options.profile, options.seed, names, progress)
    score.clock["total_s"] = round(time.monotonic() - started, 2)
    steps = []
    if options.json != "-":
        steps.append(lambda: print(score.text()))
    if options.json:
        steps.append(lambda: document.write_text(json.dumps(score.to_dict(), indent=1) + "\n", options.json))
    if options.table:
        steps.append(lambda: document.write_text("# Mutation score\n\n" + score.markdown(), options.table))
    return outputs.end(score.exit_code, outputs.deliver(steps))
