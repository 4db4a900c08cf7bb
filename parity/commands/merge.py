"""`parity merge`: reports of parts of a checkpoint, joined."""

from __future__ import annotations

import argparse

from ..errors import BadInput
from ..results import Verdict
from ..streamed.ranges import merged
from ..streamed.results import CheckpointReport
from . import checkpoint, outputs
from . import options as shared

EPILOG = """\
examples:
  parity checkpoint Flash-4bit --layers 0-20 --json one.json          on one machine
  parity checkpoint Flash-4bit --layers 21-42 --json two.json         on another
  parity merge one.json two.json --html flash.html --json flash.json
The result is the report of a single run, but for its clock; the exit code is its verdict's. Every layer must be in one
of the reports, and all must be of the same checkpoint's tokens and type.
"""


def add(commands) -> None:
    """The command's options."""
    parser = shared.new(
        commands,
        "merge",
        help="join the reports of parts of a checkpoint (`parity checkpoint --layers`)",
        description="Join the JSON reports of `parity checkpoint --layers` into the one that a single run gives.",
        epilog=EPILOG,
    )
    parser.add_argument("reports", nargs="+", metavar="FILE", help="what `parity checkpoint --layers A-B --json` wrote")
    checkpoint.add_files(parser)
    parser.set_defaults(command=command, problem=problem)


def command(options: argparse.Namespace, started: float) -> int:
    """The verdict's exit code."""
    from ..report import document

    checkpoint.check_files(options)
    found = {}
    for path in options.reports:
        one = document.read(path)
        if not isinstance(one, dict):
            raise BadInput(f"{path} is no report of `parity checkpoint --json`.")
        found[path] = one
    try:
        report = merged(found)
    except (KeyError, TypeError, AttributeError) as error:  # of this schema by its name only
        raise BadInput(f"One of the reports is damaged ({type(error).__name__}: {error}); write it anew.") from error
    return outputs.end(report.verdict.exit_code, outputs.deliver(checkpoint.files(report, options, show=True)))


def problem(options: argparse.Namespace, verdict: Verdict, sentence: str) -> list:
    """What writes the document of a merge that could not start."""
    return checkpoint.files(CheckpointReport(options.reports[0], verdict, sentence), options)
