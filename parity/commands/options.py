"""What commands share on the command line: profile, seed, outputs, and the kinds of values."""

from __future__ import annotations

import argparse
import difflib

from ..errors import BadInput


def new(commands, name: str, help: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A command's parser, with the options that every command has."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, help=help, description=description, epilog=epilog, formatter_class=raw)
    parser.add_argument(
        "--json", type=named, metavar="FILE", help="write the report as one JSON document; - for standard output"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def profile_and_seed(parser: argparse.ArgumentParser, seed: str) -> None:
    """How hard to look, and with which draws."""
    parser.add_argument(
        "--profile", default="quick", metavar="P", help="how hard to look: quick (default), full, exhaustive"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=seed)


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def count(text: str) -> int:
    """How many, at least one."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no number of things, at least 1")
    return int(text)


def named(text: str) -> str:
    """A path; an empty one, as of a variable that was not set, would ask for nothing and say nothing."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def one_of(option: str, value: str, known: list[str]) -> str:
    """A value that an option knows. Raises BadInput, with the likeliest that was meant."""
    if value in known:
        return value
    close = difflib.get_close_matches(value, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise BadInput(f"{option} does not know '{value}'; {hint}known: {', '.join(known)}.")


def devices(parser: argparse.ArgumentParser) -> None:
    """Where MLX computes, and what its errors may hide."""
    parser.add_argument(
        "--device",
        metavar="D",
        help="cpu, gpu or both (default: both where MLX finds a GPU, else cpu); on a GPU, limits are those of the "
        "errors that `parity device` measures there, and what is right on the CPU alone ends with exit code 7",
    )
    parser.add_argument(
        "--accept-noise",
        action="store_true",
        help="judge on a GPU that multiplies in TF32 or the like, too, and list the known defects that hide there",
    )


def device(options: argparse.Namespace) -> str | None:
    """What --device says, None where it is not given. Raises BadInput."""
    return None if options.device is None else one_of("--device", options.device, ["cpu", "gpu", "both"])
