"""`parity checkpoint`: does this checkpoint, of any size, compute in MLX what the reference computes from it?"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..environment import check_environment, use_one_thread
from ..errors import BadInput
from ..results import Verdict
from . import options as shared
from . import outputs
from .progress import Progress

EPILOG = """\
examples:
  parity checkpoint DeepSeek-V4-Flash-4bit
  parity checkpoint DeepSeek-V4-Flash --tokens letter.txt --count 2048 --resume flash.run --json flash.json
  parity fixture --family F2 tiny-f2 && parity checkpoint tiny-f2          a checkpoint of a few hundred kB, to try it

One block at a time is in memory, its experts one by one, so that any machine with room for the MLX model's largest
block (4 GB of Flash) does: 160 GB take as long as reading them and computing every block six times over the tokens.
The reference and dsv4_mlx decode the same files. Each block is judged alone, on the reference's streams: its attention,
its experts, its streams, and every choice of experts and rows; the prompt in one call, the last tokens one by one on
the warm cache. What became of the whole text on each one's own path stands beside it and decides nothing. With --resume
a run that was ended goes on where it was. `pytest -m full_model --checkpoint DIR` is the same as tests, one a stage.
"""
COUNT = 256
WIDEST_ALONE = 512  # sides up to which a second thread waits more than it saves


def add(commands) -> None:
    """The command's options."""
    parser = shared.new(
        commands,
        "checkpoint",
        help="judge a whole checkpoint, of any size, block by block",
        description="Judge dsv4_mlx on a checkpoint of any family and size, block by block in the memory of one.",
        epilog=EPILOG,
    )
    parser.add_argument("folder", metavar="DIR", help="a checkpoint: config.json and safetensors files")
    parser.add_argument(
        "--tokens",
        metavar="WHAT",
        help="a file of ids (.json, .npy, integers in a .txt), a file of text, or a text (default: the package's own)",
    )
    parser.add_argument("--count", type=shared.count, default=COUNT, metavar="N", help="at most so many (default 256)")
    parser.add_argument("--dtype", metavar="D", help="float32 or bfloat16 (default: the config's)")
    parser.add_argument(
        "--resume", type=shared.named, metavar="DIR", help="keep what is done in this folder, and go on from there"
    )
    parser.set_defaults(command=command, problem=problem)


def command(options: argparse.Namespace, started: float) -> int:
    """The verdict's exit code."""
    from ..report import checkpoint_table, document

    if options.json:
        document.check_target(options.json, "--json")
    if options.dtype is not None:
        shared.one_of("--dtype", options.dtype, ["float32", "bfloat16"])
    environment = check_environment()
    with Progress() as progress:
        report = judged(
            options.folder, options.tokens, options.count, options.dtype, options.resume, environment, progress
        )
    report.clock["total_s"] = round(time.monotonic() - started, 2)
    content = json.loads(json.dumps(report.to_dict()))
    steps: list[Callable[[], None]] = []
    if options.json != "-":
        steps.append(lambda: checkpoint_table.show(content, outputs.Terminal()))
    if options.json:
        steps.append(partial(document.write, report, options.json))
    return outputs.end(report.verdict.exit_code, outputs.deliver(steps))


def judged(
    folder: str,
    tokens: str | None,
    count: int,
    dtype: str | None,
    resume: str | None,
    environment: dict,
    progress: Callable[[str], None],
):
    """The report. Raises BadInput."""
    import torch

    from ..jobs.checkpoint import judge_checkpoint
    from ..streamed.source import Source
    from ..streamed.tokens import read_ids

    if count < 2:
        raise BadInput("--count needs 2 tokens at least: one call, and one on a warm cache.")
    source = Source(Path(folder))
    ids = torch.from_numpy(read_ids(tokens, Path(folder), source.config.vocab_size, count))
    if len(ids) < 2:
        raise BadInput("--tokens gives a single token; give 2 at least: one call, and one on a warm cache.")
    if source.config.hidden_size <= WIDEST_ALONE:
        use_one_thread()
    return judge_checkpoint(source, ids, dtype, Path(resume) if resume else None, environment, progress)


def problem(options: argparse.Namespace, verdict: Verdict, sentence: str) -> list[Callable[[], None]]:
    """What writes the document of a run that could not start."""
    from ..report import document
    from ..streamed.results import CheckpointReport

    report = CheckpointReport(options.folder, verdict, sentence)
    return [partial(document.write, report, options.json)] if options.json else []
