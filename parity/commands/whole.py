"""`parity checkpoint --generate` and `--candidate`: options and checks of what needs a checkpoint's model whole."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..environment import use_one_thread
from ..errors import BadInput
from ..results import Verdict
from ..streamed.results import CheckpointReport
from . import options as shared

OWN = True  # what --generate is without a folder
NEW_TOKENS = 32
WIDEST_ALONE = 512  # sides up to which a second thread waits more than it saves
BY_BLOCKS = ("original", "layers", "resume")  # options of a run that goes block by block


def add(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "--generate",
        nargs="?",
        type=shared.named,
        const=OWN,
        metavar="RECORDS",
        help="instead: let dsv4_mlx alone continue prompts greedily through mlx-lm, held to this folder of records",
    )
    parser.add_argument(
        "--max-tokens",
        type=shared.count,
        metavar="N",
        help=f"with --generate: continue by so many (default {NEW_TOKENS}; of records: all of each)",
    )
    parser.add_argument(
        "--record", type=shared.named, metavar="DIR", help="with --generate: write the continuations as a new folder"
    )
    parser.add_argument(
        "--candidate",
        type=shared.named,
        metavar="PORT",
        help="instead: judge somebody else's port, whole, by its logits; PORT as of `parity gate`",
    )


def check(options: argparse.Namespace) -> None:
    """Raise BadInput for options that do not go together."""
    record = getattr(options, "record", None)  # pytest has no such option
    if options.candidate is not None:
        refuse_by_blocks("--candidate", options)
        if options.generate is not None:
            raise BadInput("--candidate is judged by its logits; --generate is of dsv4_mlx. Give one of them.")
        if getattr(options, "dtype", None):
            raise BadInput("A port computes in the type that the checkpoint's config names; --dtype is of dsv4_mlx.")
    if options.generate is None:
        for name in ("max_tokens", "record"):
            if getattr(options, name, None) is not None:
                raise BadInput(f"--{name.replace('_', '-')} goes with --generate.")
        return
    refuse_by_blocks("--generate", options)
    if options.generate != OWN and record:
        raise BadInput("--record writes what is continued anew; give --generate without a folder.")
    if options.generate != OWN and options.tokens:
        raise BadInput(f"The prompts are those of {options.generate}; leave --tokens out, or the folder.")
    if record:
        from ..whole.records import check_target

        check_target(Path(record))


def refuse_by_blocks(option: str, options: argparse.Namespace) -> None:
    """Raise BadInput where a run of the whole model is asked for what only one by blocks has."""
    for name in BY_BLOCKS:
        if getattr(options, name, None):
            raise BadInput(f"{option} runs the whole model at once; --{name} is of a run block by block.")


def generated(
    folder: str,
    records: str | bool,
    environment: dict,
    progress: Callable[[str], None],
    max_tokens: int | None = None,
    dtype: str | None = None,
    most: float | None = None,
    tokens: str | None = None,
    count: int | None = None,
) -> CheckpointReport:
    """The report of `--generate`. Raises BadInput."""
    from ..jobs.checkpoint import judge_generation
    from ..streamed.source import Source
    from ..streamed.tokens import read_ids
    from ..whole import generate
    from ..whole.records import Record, read

    source = Source(Path(folder))
    vocabulary = source.config.vocab_size
    if records != OWN:
        given = read(Path(records), vocabulary)
    elif tokens is not None:
        given = [Record("prompt-1", read_ids(tokens, Path(folder), vocabulary, count).tolist())]
    else:
        given = generate.prompts(Path(folder), vocabulary)
    again = ["parity", "checkpoint", folder, "--generate", *[records] * (records != OWN)]
    pairs = (("--max-tokens", max_tokens), ("--tokens", tokens), ("--dtype", dtype))
    again += [word for name, value in pairs if value for word in (name, str(value))]
    again += ["--count", str(count)] if tokens and count else []
    most_tokens = max_tokens if records != OWN else max_tokens or NEW_TOKENS
    return judge_generation(source, given, most_tokens, dtype, environment, shlex.join(again), progress, most)


def ported(
    folder: str,
    target: str,
    environment: dict,
    progress: Callable[[str], None],
    tokens: str | None,
    count: int,
    most: float | None = None,
) -> CheckpointReport:
    """The report of `--candidate`. Raises BadInput."""
    import torch

    from ..jobs.checkpoint import judge_port
    from ..streamed.source import Source
    from ..streamed.tokens import read_ids

    source = Source(Path(folder))
    ids = torch.from_numpy(read_ids(tokens, Path(folder), source.config.vocab_size, count))
    if len(ids) < 2:
        raise BadInput("A port is given 2 tokens at least: a prompt, and one on a warm cache.")
    if source.config.hidden_size <= WIDEST_ALONE:
        use_one_thread()
    again = ["parity", "checkpoint", folder, "--candidate", target, "--count", str(count)]
    again += ["--tokens", tokens] if tokens else []
    return judge_port(source, target, ids, environment, shlex.join(again), progress, most)


def recording(report: CheckpointReport, folder: str | None) -> list[Callable[[], None]]:
    """What writes a report's continuations, where that was asked for and they are right."""
    if not folder or report.verdict is not Verdict.PARITY:
        return []
    from ..whole.records import write

    return [partial(write, Path(folder), report.continuations, report.facts["dtype"])]
