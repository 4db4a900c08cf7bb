"""Judge ports of DeepSeek-V4: `parity gate` somebody's port, `parity run` every submodule of dsv4_mlx, `parity golden`
recordings of the official program."""

from __future__ import annotations

import argparse
import difflib
import sys
import time
import traceback
from collections.abc import Callable

from .commands import gate as gate_command
from .commands import outputs
from .environment import check_environment, prepare_environment, use_one_thread
from .errors import BadEnvironment, BadInput, ParityError

INTERNAL_ERROR = 70
INTERRUPTED = 130

EPILOG = """\
verdicts and exit codes:
  0  parity        everything that was compared agrees
  1  diverges      something computes otherwise; the first such part is named
  2  bad input     the command line, a config or a checkpoint cannot be used
  3  environment   a library is missing or out of range, or TF32 is on
  4  crashed       the candidate raised where the reference computed
  5  coverage gap  nothing was compared, or the reference disagrees with itself (inconclusive)
  130 interrupted  Ctrl-C, SIGTERM or SIGHUP; the document holds what was found until then

what the numbers mean:
  Every tensor is computed three times: by the reference in float64 (exact), by the reference in the run's type
  (baseline), and by dsv4_mlx. "error / limit" is dsv4_mlx's error against exact, over what the same maths with other
  rounding was measured to differ by. Below 1 is normal; above 1 is not explained by rounding.
"""

RUN_EPILOG = """\
examples:
  parity run                                        every pair, float32 and bfloat16, in under a minute
  parity run --pair compressor.overlap --profile full
  parity run --pair rope --dtype float32 --seed 7 --json report.json
"""

GOLDEN_EPILOG = """\
examples:
  parity golden fixtures/golden/*                   every recorded case
  parity golden fixtures/golden/flash_exact --json report.json
A case is a folder with config.json, model.safetensors, vectors.safetensors and case.json; the README.md in
fixtures/golden tells the format.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is the verdict's."""
    started = time.monotonic()
    prepare_environment()
    outputs.prepare()
    options = parser().parse_args(arguments)
    with outputs.ended_by_signals():
        return _run(options, started)


def _run(options: argparse.Namespace, started: float) -> int:
    """The command, and whatever stops it as a sentence, a document and a code."""
    try:
        return options.command(options, started, Progress)
    except KeyboardInterrupt:
        print("parity: stopped.", file=sys.stderr)
        return INTERRUPTED
    except ParityError as error:
        if options.debug:
            traceback.print_exc()
        print(f"parity: {error}", file=sys.stderr)
        _document_problem(options, error)
        return error.exit_code
    except ImportError as error:
        if options.debug:
            traceback.print_exc()
        reason = " ".join(str(error).split())[:400].rstrip(".")
        problem = BadEnvironment(f"A library that the harness builds on cannot be imported ({reason}); install it.")
        print(f"parity: {problem}", file=sys.stderr)
        _document_problem(options, problem)
        return problem.exit_code
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        problem = outputs.no_room(error)
        if problem is not None:
            print(f"parity: {problem}", file=sys.stderr)
            _document_problem(options, problem)
            return problem.exit_code
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        print(f"parity: the harness itself failed ({reason}); run again with --debug and report it.", file=sys.stderr)
        return INTERNAL_ERROR


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="parity", description=__doc__, epilog=EPILOG, formatter_class=raw)
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="judge every submodule of dsv4_mlx",
        description="Judge dsv4_mlx, submodule by submodule.",
        epilog=RUN_EPILOG,
        formatter_class=raw,
    )
    run.add_argument(
        "--profile", default="quick", metavar="P", help="how hard to look: quick (default), full, exhaustive"
    )
    run.add_argument(
        "--pair",
        action="append",
        default=[],
        metavar="NAME",
        help="judge only this pair; may be given again (default: all)",
    )
    run.add_argument(
        "--dtype",
        action="append",
        default=[],
        metavar="D",
        help="float32 or bfloat16; may be given again (default: both)",
    )
    run.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="draw other examples (default 0); the same seed gives the same report",
    )
    run.add_argument("--case", metavar="JSON", help="judge one printed example again; needs --pair")
    run.set_defaults(command=run_command, name="run", problem=_run_problem)

    golden = commands.add_parser(
        "golden",
        help="replay recorded vectors through both implementations",
        description="Replay recorded vectors of the official program through reference_torch and dsv4_mlx: one "
        "shot and incremental, every tap.",
        epilog=GOLDEN_EPILOG,
        formatter_class=raw,
    )
    golden.add_argument("folders", nargs="+", metavar="DIR", help="a recorded case, or a folder of them")
    golden.set_defaults(command=golden_command, name="golden", problem=_run_problem)

    for command in (run, golden, *gate_command.add_parsers(commands, raw)):
        command.add_argument(
            "--json",
            type=gate_command.named,
            metavar="FILE",
            help="write the report as one JSON document; - for standard output",
        )
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    return top


def run_command(options: argparse.Namespace, started: float, progress_line: Callable) -> int:
    """`parity run`."""
    from .report import document

    if options.json:
        document.check_target(options.json)
    environment = check_environment()
    from .cases.strategies import PROFILES, Case
    from .jobs.lives import Life
    from .jobs.run import run
    from .pairs import LifePair, registry

    profile = PROFILES[_one_of("--profile", options.profile, list(PROFILES))]
    names = [_one_of("--pair", name, list(registry())) for name in options.pair]
    dtypes = [_one_of("--dtype", name, ["float32", "bfloat16"]) for name in options.dtype] or ["float32", "bfloat16"]
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
    return _finish(
        options,
        started,
        imported,
        progress_line,
        lambda progress: run(profile, names, dtypes, options.seed, environment, progress, case),
    )


def golden_command(options: argparse.Namespace, started: float, progress_line: Callable) -> int:
    """`parity golden`."""
    from .report import document

    if options.json:
        document.check_target(options.json)
    environment = check_environment()
    from .jobs.golden import golden

    imported = time.monotonic() - started
    return _finish(
        options, started, imported, progress_line, lambda progress: golden(options.folders, environment, progress)
    )


def _finish(
    options: argparse.Namespace, started: float, imported: float, progress_line: Callable, work: Callable
) -> int:
    """Do the work under a progress line, write the document, show the table."""
    use_one_thread()
    from .report import document, table

    with progress_line() as progress:
        report = work(progress)
    report.clock = {"import_s": round(imported, 2), **report.clock, "total_s": round(time.monotonic() - started, 2)}
    steps = []
    if options.json != "-":
        steps.append(lambda: table.show(report, outputs.Terminal()))
    if options.json:
        steps.append(lambda: document.write(report, options.json))
    return outputs.end(report.verdict.exit_code, outputs.deliver(steps))


class Progress:
    """One line on standard error: in place on a terminal, a new line every few seconds where output is kept in a
    log."""

    EVERY = 5.0

    def __init__(self):
        from rich.console import Console

        self.console = Console(stderr=True)
        self.status = self.console.status("starting") if self.console.is_terminal else None
        self.last = time.monotonic()

    def __enter__(self) -> Progress:
        if self.status:
            self.status.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.status:
            self.status.stop()

    def __call__(self, text: str) -> None:
        """Say what is being done now."""
        if self.status:
            self.status.update(text)
        elif time.monotonic() - self.last > self.EVERY:
            self.console.print(text, highlight=False)
            self.last = time.monotonic()


def _document_problem(options: argparse.Namespace, error: ParityError) -> None:
    """A run that could not start has a document too, so that a CI job reads one file whatever happened."""
    from .report import document
    from .results import Verdict

    verdict = next(verdict for verdict in Verdict if verdict.exit_code == error.exit_code)
    if not options.problem:
        return
    report = options.problem(options, verdict, str(error))
    if options.name == "gate":
        outputs.deliver(gate_command.files(report, options))
    elif options.json:
        outputs.deliver([lambda: document.write(report, options.json)])


def _run_problem(options: argparse.Namespace, verdict, sentence: str):
    from .results import Report

    profile, seed = getattr(options, "profile", ""), getattr(options, "seed", 0)
    return Report(options.name, profile, seed, verdict, sentence, environment={})


def _one_of(option: str, value: str, known: list[str]) -> str:
    if value in known:
        return value
    close = difflib.get_close_matches(value, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise BadInput(f"{option} does not know '{value}'; {hint}known: {', '.join(known)}.")
