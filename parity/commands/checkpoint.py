"""`parity checkpoint`: does this checkpoint, of any size, compute in MLX what the reference computes from it, or from
what it was converted from?"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..environment import check_environment, use_one_thread
from ..errors import BadInput
from ..results import Verdict
from ..streamed.results import CheckpointReport
from . import options as shared
from . import outputs, whole
from .progress import Progress

EPILOG = """\
examples:
  parity checkpoint DeepSeek-V4-Flash-4bit
  parity checkpoint DeepSeek-V4-Flash-4bit --original DeepSeek-V4-Flash
  parity checkpoint DeepSeek-V4-Flash --tokens letter.txt --count 2048 --resume flash.run --json flash.json
  parity checkpoint DeepSeek-V4-Flash-4bit --generate --max-tokens 64 --record flash.continued
  parity checkpoint DeepSeek-V4-Flash-4bit --generate flash.continued
  parity checkpoint DeepSeek-V4-Flash-4bit --candidate path/to/mlx_lm/models/deepseek_v4.py --count 64
  parity fixture --family F2 tiny-f2 && parity checkpoint tiny-f2          a checkpoint of a few hundred kB, to try it

One block at a time is in memory, its experts one by one, so that any machine with room for the MLX model's largest
block (4 GB of Flash) does: 160 GB take as long as reading them and computing every block six times over the tokens.
The reference and dsv4_mlx decode the same files. Each block is judged alone, on the reference's streams: its attention,
its experts, its streams, and every choice of experts and rows; the prompt in one call, the last tokens one by one on
the warm cache. What became of the whole text on each one's own path stands beside it and decides nothing. With --resume
a run that was ended goes on where it was.

With --layers two machines share the work: each passes the layers before its own, which costs about a half of judging
them, and `parity merge` joins the two reports into the one that a single run gives.

With --original the question is what a conversion did: every tensor is held to what honest rounding to its format leaves
of the original's, group by group, and each block of dsv4_mlx on the conversion to the reference on the original, within
what honestly rounded weights do there. A wrong scale, a swapped matrix, a table that moved is named.

With --generate the MLX model alone, whole where it fits, continues prompts through mlx-lm: the package's own (or what
--tokens gives), held to its own logits in one call; or those of a folder of records, each token held to the recorded
one. A token that differs where the two best are nearer than rounding explains is a tie, any other diverges.

With --candidate somebody else's port is judged in dsv4_mlx's place, whole where it fits, in a process of its own: its
logits of the same tokens, in one call and on a warm cache, against those at the end of the streamed reference. This
says whether it is right on a checkpoint; where it is wrong, `parity gate PORT` says.

`pytest -m full_model --checkpoint DIR` is the same as tests, one a stage.
"""
FILES = ("json", "html", "markdown", "junit")
COUNT = 256


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
        "--original",
        type=shared.named,
        metavar="DIR",
        help="what DIR is a conversion of: judge what rounding explains, and name what it does not",
    )
    parser.add_argument(
        "--tokens",
        metavar="WHAT",
        help="a file of ids (.json, .npy, integers in a .txt), a file of text, or a text (default: the package's own)",
    )
    parser.add_argument("--count", type=shared.count, default=COUNT, metavar="N", help="at most so many (default 256)")
    parser.add_argument("--dtype", metavar="D", help="float32 or bfloat16 (default: the config's)")
    parser.add_argument(
        "--memory",
        type=shared.positive,
        metavar="GIB",
        help="a ceiling: do not start what needs more, and end a run that comes to more",
    )
    parser.add_argument(
        "--layers", metavar="A-B", help="judge these layers only, passing the earlier ones; `parity merge` joins parts"
    )
    parser.add_argument(
        "--resume", type=shared.named, metavar="DIR", help="keep what is done in this folder, and go on from there"
    )
    whole.add(parser)
    add_files(parser)
    parser.set_defaults(command=command, problem=problem)


def add_files(parser: argparse.ArgumentParser) -> None:
    """Options for what is written besides JSON."""
    for name, what in (
        ("html", "a page for the browser, with error by layer as a picture"),
        ("markdown", "a summary for a CI job"),
        ("junit", "JUnit XML, one test a stage"),
    ):
        parser.add_argument(f"--{name}", type=shared.named, metavar="FILE", help=f"write {what}")


def command(options: argparse.Namespace, started: float) -> int:
    """The verdict's exit code."""
    check_files(options)
    if options.dtype is not None:
        shared.one_of("--dtype", options.dtype, ["float32", "bfloat16"])
    whole.check(options)
    with on_this_device() as environment, Progress() as progress:
        report = asked(options, environment, progress)
    report.clock["total_s"] = round(time.monotonic() - started, 2)
    steps = [*files(report, options, show=True), *whole.recording(report, options.record)]
    return outputs.end(report.verdict.exit_code, outputs.deliver(steps))


@contextlib.contextmanager
def on_this_device() -> Iterator[dict]:
    """The environment; inside, limits are those of the device that MLX computes on. Raises BadEnvironment."""
    environment = check_environment()
    from ..beside import plan as planning

    plan = planning.current(outputs.say)
    with plan.limits(plan.first):
        yield environment | plan.facts


def asked(options: argparse.Namespace, environment: dict, progress: Progress) -> CheckpointReport:
    """The report of what the options ask for. Raises BadInput."""
    limits = {"dtype": options.dtype, "most": options.memory, "tokens": options.tokens, "count": options.count}
    if options.generate is not None:
        return whole.generated(options.folder, options.generate, environment, progress, options.max_tokens, **limits)
    if options.candidate is not None:
        del limits["dtype"]
        return whole.ported(options.folder, options.candidate, environment, progress, **limits)
    others = {"resume": options.resume, "original": options.original, "layers": options.layers}
    return judged(options.folder, environment=environment, progress=progress, **limits, **others)


def check_files(options: argparse.Namespace) -> None:
    """Raise BadInput where a file cannot be written."""
    from ..report import document

    for name in FILES:
        if getattr(options, name):
            document.check_target(getattr(options, name), f"--{name}")


def files(report: CheckpointReport, options: argparse.Namespace, show: bool = False) -> list[Callable[[], None]]:
    """What gives the report to the outside, a step each; with `show`, the terminal's view first."""
    from ..report import checkpoint_documents, checkpoint_page, checkpoint_table, document

    content = json.loads(json.dumps(report.to_dict()))
    renderings = {
        "json": document.text_of,
        "html": checkpoint_page.page,
        "markdown": checkpoint_documents.markdown,
        "junit": checkpoint_documents.junit,
    }
    write = lambda name: document.write_text(renderings[name](content), getattr(options, name))  # noqa: E731
    asked = [name for name in FILES if getattr(options, name, None)]
    steps = [partial(write, name) for name in asked]
    if show and "-" not in [getattr(options, name) for name in asked]:
        steps.insert(0, lambda: checkpoint_table.show(content, outputs.Terminal()))
    return steps


def judged(
    folder: str,
    tokens: str | None,
    count: int,
    dtype: str | None,
    resume: str | None,
    environment: dict,
    progress: Callable[[str], None],
    original: str | None = None,
    layers: str | None = None,
    most: float | None = None,
):
    """The report. Raises BadInput."""
    import torch

    from ..jobs.checkpoint import judge_checkpoint
    from ..streamed.source import Source
    from ..streamed.tokens import read_ids

    if count < 2:
        raise BadInput("--count needs 2 tokens at least: one call, and one on a warm cache.")
    if original is not None and Path(original).resolve() == Path(folder).resolve():
        raise BadInput(f"{folder} is its own --original; give the folder that it was converted from.")
    source = Source(Path(folder), complain=original is None)
    first = Source(Path(original)) if original is not None else None
    ids = torch.from_numpy(read_ids(tokens, Path(folder), source.config.vocab_size, count))
    if len(ids) < 2:
        raise BadInput("--tokens gives a single token; give 2 at least: one call, and one on a warm cache.")
    if source.config.hidden_size <= whole.WIDEST_ALONE:
        use_one_thread()
    pairs = (("--original", original), ("--tokens", tokens), ("--dtype", dtype), ("--layers", layers))
    again = ["parity", "checkpoint", folder, "--count", str(count)]
    again += [word for name, value in pairs if value for word in (name, value)]
    return judge_checkpoint(
        source,
        ids,
        dtype,
        Path(resume) if resume else None,
        environment,
        shlex.join(again),
        progress,
        first,
        layers,
        most,
    )


def problem(options: argparse.Namespace, verdict: Verdict, sentence: str) -> list[Callable[[], None]]:
    """What writes the document of a run that could not start."""
    return files(CheckpointReport(options.folder, verdict, sentence), options)
