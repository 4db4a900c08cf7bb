"""Judge ports of DeepSeek-V4: `parity gate` somebody's port, `parity run` every submodule of dsv4_mlx, `parity golden`
recordings of the official program."""

from __future__ import annotations

import argparse
import time
import traceback

from .commands import checkpoint, defects, device, fixture, gate, golden, inspect, merge, outputs, run
from .environment import prepare_environment
from .errors import BadEnvironment, ParityError

COMMANDS = (run, golden, gate, checkpoint, merge, defects, device, fixture, inspect)
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
  6  no device     a GPU was asked for where MLX finds none
  7  device        right on the CPU, and on the GPU beyond what its own errors explain: a kernel is wrong
  130 interrupted  Ctrl-C, SIGTERM or SIGHUP; the document holds what was found until then

what the numbers mean:
  Every tensor is computed three times: by the reference in float64 (exact), by the reference in the run's type
  (baseline), and by dsv4_mlx. "error / limit" is dsv4_mlx's error against exact, over what the same maths with other
  rounding was measured to differ by. Below 1 is normal; above 1 is not explained by rounding.
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
        return options.command(options, started)
    except KeyboardInterrupt:
        outputs.say("stopped.")
        return INTERRUPTED
    except ParityError as error:
        if options.debug:
            traceback.print_exc()
        outputs.say(str(error))
        _document_problem(options, error)
        return error.exit_code
    except ImportError as error:
        if options.debug:
            traceback.print_exc()
        reason = " ".join(str(error).split())[:400].rstrip(".")
        problem = BadEnvironment(f"A library that the harness builds on cannot be imported ({reason}); install it.")
        outputs.say(str(problem))
        _document_problem(options, problem)
        return problem.exit_code
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        problem = outputs.no_room(error)
        if problem is not None:
            outputs.say(str(problem))
            _document_problem(options, problem)
            return problem.exit_code
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        outputs.say(f"the harness itself failed ({reason}); run again with --debug and report it.")
        return INTERNAL_ERROR


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="parity", description=__doc__, epilog=EPILOG, formatter_class=raw)
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return top


def _document_problem(options: argparse.Namespace, error: ParityError) -> None:
    """A command that could not start has its documents too, so that a CI job reads one file whatever happened."""
    from .results import Verdict

    if options.problem:
        verdict = next(verdict for verdict in Verdict if verdict.exit_code == error.exit_code)
        outputs.deliver(options.problem(options, verdict, str(error)))
