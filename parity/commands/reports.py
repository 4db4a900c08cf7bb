"""From the work of `run` and `golden` to the outside: progress, table, document."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from ..environment import use_one_thread
from ..results import Report, Verdict
from . import outputs
from .progress import Progress


def check_target(options: argparse.Namespace) -> None:
    """Raise BadInput where the document could not be written."""
    from ..report import document

    if options.json:
        document.check_target(options.json)


def made(options: argparse.Namespace, started: float, imported: float, work: Callable[[Progress], Report]) -> int:
    """Do the work under a progress line, show the table, write the document; the exit code."""
    use_one_thread()
    from ..report import document, table

    with Progress() as progress:
        report = work(progress)
    report.clock = {"import_s": round(imported, 2), **report.clock, "total_s": round(time.monotonic() - started, 2)}
    steps = []
    if options.json != "-":
        steps.append(lambda: table.show(report, outputs.Terminal()))
    if options.json:
        steps.append(lambda: document.write(report, options.json))
    return outputs.end(report.verdict.exit_code, outputs.deliver(steps))


def problem(
    options: argparse.Namespace, command: str, profile: str, seed: int, verdict: Verdict, sentence: str
) -> list[Callable[[], None]]:
    """What writes the document of a run that could not start."""
    from ..report import document

    report = Report(command, profile, seed, verdict, sentence, environment={})
    return [lambda: document.write(report, options.json)] if options.json else []
