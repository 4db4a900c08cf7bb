"""`parity fixture`: write synthetic checkpoints of any family."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import BadInput
from . import options as shared
from . import outputs
from .progress import Progress

EPILOG = """\
examples:
  parity fixture --family F2 tiny-f2                        an mlx-community conversion, 8 bits with MXFP4 experts
  parity fixture --family F1 F3 --size mid --shards 5 DIR   two folders in DIR, 5 shards each
  parity fixture --config pro --size layer --family F1 DIR  one layer of each kind at Pro's true dimensions
families and their variants:
  {variants}
The weights are random; w0, w1, ... are the tokenizer's words. `python -m dsv4_mlx generate --model DIR` runs it.
"""


def add(commands) -> None:
    """The command's options."""
    variants = "F1 F1-base F1-bfloat16 F1-float32 F2 F2-4bit F2-5bit F2-2bit-DQ F2-mxfp4 F2-mxfp8\n  F2-nvfp4 F2-3d"
    variants += " F2-bfloat16 F3 F3-bfloat16 F4 F5 F5-mxfp4 F8"
    parser = shared.new(
        commands,
        "fixture",
        help="write a synthetic checkpoint of any family",
        description="Write synthetic checkpoints, complete with config and tokenizer.",
        epilog=EPILOG.format(variants=variants),
    )
    parser.add_argument("--config", default="flash", metavar="C", help="flash (default), pro, or a config.json")
    parser.add_argument("--family", nargs="+", action="extend", metavar="F", help="families to write (default F1)")
    parser.add_argument("--size", default="tiny", metavar="S", help="tiny (default), mid, or layer: true dimensions")
    parser.add_argument(
        "--shards", type=int, metavar="N", help="files of weights (default: 1; of size layer, one a layer)"
    )
    parser.add_argument("--no-mtp", action="store_true", help="leave out the MTP block")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draw other weights (default 0)")
    parser.add_argument(
        "folder", nargs="?", metavar="DIR", help="a new folder; with several families, a folder for each is in it"
    )
    parser.set_defaults(command=command, problem=None)


def command(options: argparse.Namespace, started: float) -> int:
    """0; whatever is wrong raises."""
    from ..cases.resources import fixtures_path
    from ..cases.synthetic import SIZES
    from ..jobs.fixture import VARIANTS, write_fixture
    from ..jobs.inspect import read_config
    from ..report import document

    families = options.family or ["F1"]
    if options.folder is None and len(families) > 1:  # `--family F2 DIR`: the option took both
        options.folder = families.pop()
    if options.folder is None:
        raise BadInput("Name the new folder: parity fixture --family F2 DIR.")
    if options.json:
        document.check_target(options.json, "--json")
    for family in families:
        shared.one_of("--family", family, list(VARIANTS))
    shared.one_of("--size", options.size, list(SIZES))
    if options.shards is not None and not 1 <= options.shards <= 1000:
        raise BadInput(f"--shards is {options.shards}; give a number from 1 to 1000.")
    known = {path.stem: path for path in (fixtures_path() / "configs").glob("*.json")}
    config = read_config(known.get(options.config, Path(options.config)))
    made = []
    for family in families:
        folder = Path(options.folder, family) if len(families) > 1 else Path(options.folder)
        with Progress() as progress:
            say = lambda text, family=family: progress(f"{family}: {text}")  # noqa: E731
            write_fixture(folder, config, family, options.size, options.shards, not options.no_mtp, options.seed, say)
        made.append({"folder": str(folder), "family": family})
    steps = [lambda: print("\n".join(one["folder"] for one in made))] if options.json != "-" else []
    if options.json:
        steps.append(lambda: document.write_text(json.dumps({"written": made}, indent=1) + "\n", options.json))
    return outputs.end(0, outputs.deliver(steps))
