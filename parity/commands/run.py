"""`parity run`: judge every submodule of dsv4_mlx."""

from __future__ import annotations

import argparse
import time

from ..environment import check_environment
from ..errors import BadInput
from ..results import Verdict
from . import options as shared
from . import outputs, reports

EPILOG = """\
examples:
  parity run                                        every pair, float32 and bfloat16, in under a minute
  parity run --pair compressor.overlap --profile full
  parity run --pair rope --dtype float32 --seed 7 --json report.json
"""

DTYPES = ["float32", "bfloat16"]


def add(commands) -> None:
    """The command's options."""
    parser = shared.new(
        commands,
        "run",
        help="judge every submodule of dsv4_mlx",
        description="Judge dsv4_mlx, submodule by submodule.",
        epilog=EPILOG,
    )
    shared.profile_and_seed(parser, "draw other examples (default 0); the same seed gives the same report")
    parser.add_argument(
        "--pair",
        action="append",
        default=[],
        metavar="NAME",
        help="judge only this pair; may be given again (default: all)",
    )
    parser.add_argument(
        "--dtype",
        action="append",
        default=[],
        metavar="D",
        help="float32 or bfloat16; may be given again (default: both)",
    )
    parser.add_argument("--case", metavar="JSON", help="judge one printed example again; needs --pair")
    shared.devices(parser)
    parser.set_defaults(command=command, problem=problem)


def command(options: argparse.Namespace, started: float) -> int:
    """The verdict's exit code."""
    reports.check_target(options)
    environment = check_environment()
    from ..beside import plan as planning
    from ..beside.rows import run_on
    from ..cases.strategies import PROFILES, Case
    from ..jobs.lives import Life
    from ..jobs.run import run
    from ..pairs import LifePair, registry

    profile = PROFILES[shared.one_of("--profile", options.profile, list(PROFILES))]
    names = [shared.one_of("--pair", name, list(registry())) for name in options.pair]
    dtypes = [shared.one_of("--dtype", name, DTYPES) for name in options.dtype] or DTYPES
    case = None
    if options.case is not None:
        if not names:
            raise BadInput("--case needs --pair; take both from the command that the report prints.")
        try:
            kinds = {Life if isinstance(registry()[name], LifePair) else Case for name in names}
            if len(kinds) > 1:
                raise ValueError("the pairs that --pair names take examples of two sorts")
            case = kinds.pop().from_json(options.case)
        except ValueError as error:
            raise BadInput(
                f"--case is not a printed example ({error}); take it from the command that the report prints."
            ) from error
    imported = time.monotonic() - started
    plan = planning.asked(shared.device(options), options.accept_noise, outputs.say)
    what = profile, names, dtypes, options.seed, environment
    work = lambda progress: run_on(plan, lambda check: run(*what, progress, case, check))  # noqa: E731
    return reports.made(options, started, imported, work)


def problem(options: argparse.Namespace, verdict: Verdict, sentence: str) -> list:
    """The document of a run that could not start, as steps of `outputs.deliver`."""
    return reports.problem(options, "run", options.profile, options.seed, verdict, sentence)
