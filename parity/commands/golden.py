"""`parity golden`: replay recordings of the official program."""

from __future__ import annotations

import argparse
import time

from ..environment import check_environment
from ..results import Verdict
from . import options as shared
from . import reports

EPILOG = """\
examples:
  parity golden fixtures/golden/*                   every recorded case
  parity golden fixtures/golden/flash_exact --json report.json
A case is a folder with config.json, model.safetensors, vectors.safetensors and case.json; the README.md in
fixtures/golden tells the format.
"""


def add(commands) -> None:
    """The command's options."""
    parser = shared.new(
        commands,
        "golden",
        help="replay recorded vectors through both implementations",
        description="Replay recorded vectors of the official program through reference_torch and dsv4_mlx: one "
        "shot and incremental, every tap.",
        epilog=EPILOG,
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a recorded case, or a folder of them")
    parser.set_defaults(command=command, problem=problem)


def command(options: argparse.Namespace, started: float) -> int:
    """The verdict's exit code."""
    reports.check_target(options)
    environment = check_environment()
    from ..jobs.golden import golden

    imported = time.monotonic() - started
    work = lambda progress: golden(options.folders, environment, progress)  # noqa: E731
    return reports.made(options, started, imported, work)


def problem(options: argparse.Namespace, verdict: Verdict, sentence: str) -> list:
    """The document of a replay that could not start, as steps of `outputs.deliver`."""
    return reports.problem(options, "golden", "", 0, verdict, sentence)
