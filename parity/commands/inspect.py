"""`parity inspect`: what is this checkpoint?"""

from __future__ import annotations

import argparse
import json
from collections import Counter

from . import options as shared
from . import outputs

EPILOG = """\
examples:
  parity inspect DeepSeek-V4-Flash-4bit
  parity inspect DeepSeek-V4-Flash --json -
Exit code 0: dsv4_mlx and the reference load the folder strictly. 2: they do not; what is missing, unknown or
contradictory is listed. Only the config and the files' headers are read.
"""
SHOWN = 12
AREAS = {
    "shared_experts": "shared expert",
    ".experts.": "experts",
    "ffn.gate": "router",
    "indexer": "indexer",
    "compressor": "compressor",
    "attn.": "attention",
}


def add(commands) -> None:
    """The command's options."""
    parser = shared.new(
        commands,
        "inspect",
        help="say what a checkpoint folder is: family, quantisation, what is missing or left out",
        description="Say in a screen what a checkpoint folder is.",
        epilog=EPILOG,
    )
    parser.add_argument("folder", metavar="DIR", help="a checkpoint: config.json and safetensors files")
    parser.set_defaults(command=command, problem=None)


def command(options: argparse.Namespace, started: float) -> int:
    """0, or 2 where the folder does not load."""
    from ..jobs.inspect import inspect
    from ..report import document

    if options.json:
        document.check_target(options.json, "--json")
    found = inspect(options.folder)
    steps = []
    if options.json != "-":
        steps.append(lambda: _show(found))
    if options.json:
        steps.append(lambda: document.write_text(json.dumps(found.to_dict(), indent=1) + "\n", options.json))
    return outputs.end(found.exit_code, outputs.deliver(steps))


def _area(kind: str) -> str:
    """What a kind of matrix is shown with; the routed experts' three are stored differently often enough."""
    before = "MTP " if kind.startswith("mtp.") else ""
    for part, area in AREAS.items():
        if part in kind:
            return f"{before}{area} {kind[-2:]}" if part == ".experts." else before + area
    return f"{before}projections" if before else kind


def _show(found) -> None:
    from rich.table import Table
    from rich.text import Text

    terminal = outputs.Terminal()
    blocks = f", {found.mtp_blocks} MTP block" + "s" * (found.mtp_blocks > 1) if found.mtp_blocks else ", no MTP block"
    size = f"{found.bytes / 1e9:.2f} GB" if found.bytes > 1e8 else f"{found.bytes / 1e6:.2f} MB"
    lines = [
        f"{found.folder}",
        f"  family      {found.family}, {found.title}",
        f"  variant     {found.variant}",
        f"  model       {found.layers} layers{blocks}",
        f"  files       {found.files}, {found.tensors} tensors, {size}",
        f"  loaded by   dsv4_mlx, reference_torch{''.join(f', {port}' for port in found.ports)}",
    ]
    for reason, count in found.left_out.items():
        lines.append(f"  left out    {count} tensors: {reason}")
    terminal.print(Text("\n".join(lines)))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, side in (("matrices", "left"), ("stored as", "left"), ("bits a number", "right"), ("MB", "right")):
        table.add_column(column, justify=side)
    areas: dict[str, list] = {}
    for kind in found.kinds:
        areas.setdefault(_area(kind.name), []).append(kind)
    for area, kinds in areas.items():
        formats = sum((Counter(kind.formats) for kind in kinds), Counter())
        stored = ", ".join(name if len(formats) == 1 else f"{name} ({n})" for name, n in formats.items())
        numbers, size = sum(kind.numbers for kind in kinds), sum(kind.bytes for kind in kinds)
        table.add_row(area, stored, f"{8 * size / numbers:.2f}", f"{size / 1e6:.2f}")
    terminal.print(table)
    for sentence in found.problems[:SHOWN]:
        terminal.print(Text(f"does not load: {sentence}", style="red"))
    if len(found.problems) > SHOWN:
        terminal.print(Text(f"... and {len(found.problems) - SHOWN} more problems", style="red"))
