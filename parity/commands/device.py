"""`parity device`: how large are this machine's own errors?"""

from __future__ import annotations

import argparse

from . import options as shared
from . import outputs

EPILOG = """\
examples:
  parity device                     every device that MLX finds here
  parity device --device gpu        the GPU, with the CPU's figures beside it
  parity device --anew --json -     measured again, as one JSON document

what it is for:
  A port that is right may still be far from the reference where the device computes sines, exponentials, sums or
  products with larger errors than a CPU does. How large they are is measured here, primitive by primitive, against
  float64, and shown in ulps (steps between neighbouring numbers of the type). A primitive that rounds once and is
  otherwise exact has an rms of 0.3 and a max of 0.5. "ulps of" says at which magnitude a step is taken:
    result     of the exact result
    terms      of a sum: the larger of the result and the root of the sum of its terms' squares
    amplitude  of a sine: 1
    angle      of a turn: 1, or the rotated pair's length, times the angle where that is above 1
  Figures of bfloat16 are in ulps of bfloat16, 65536 times as large as those of float32.

Figures are kept in the user's cache folder ($XDG_CACHE_HOME or ~/.cache) for this device, driver, system, BLAS and
version of MLX; --anew measures again. It is this Python's MLX that is measured, in a process of its own.
Exit code 0: measured. 3: MLX cannot be used. 6: the device that was asked for is not there.
"""
CHOICES = ["cpu", "gpu", "both"]


def add(commands) -> None:
    """The command's options."""
    parser = shared.new(
        commands,
        "device",
        help="measure how large the errors of this machine's own primitives are",
        description="Measure each primitive of the model on a device against float64.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--device", metavar="D", help=f"{', '.join(CHOICES)} (default: both where MLX finds a GPU, else cpu)"
    )
    parser.add_argument("--anew", action="store_true", help="measure again, whatever is kept")
    parser.set_defaults(command=command, problem=None)


def command(options: argparse.Namespace, started: float) -> int:
    """0; what cannot be measured raises."""
    from ..devices.calibrating import calibration, those_here
    from ..devices.results import DEVICES, document
    from ..report import document as files

    if options.json:
        files.check_target(options.json)
    if options.device is None:
        asked = those_here()
    else:
        shared.one_of("--device", options.device, CHOICES)
        asked = DEVICES if options.device == "both" else (options.device,)
    found = {kind: calibration(kind, options.anew, outputs.say) for kind in asked}
    steps = []
    if options.json != "-":
        beside = found.get("cpu") or calibration("cpu", options.anew, outputs.say)
        steps += [lambda kind=kind: _show(found[kind], None if kind == "cpu" else beside) for kind in asked]
    if options.json:
        text = files.text_of(document([*found.values()]))
        steps.append(lambda: files.write_text(text, options.json))
    return outputs.end(0, outputs.deliver(steps))


def _show(calibration, cpu) -> None:
    """One device's table; beside it the CPU's figures, where it is another device."""
    from rich.table import Table
    from rich.text import Text

    terminal, device = outputs.Terminal(), calibration.device
    where = [device.system, device.driver and f"driver {device.driver}", ", ".join(device.blas), f"MLX {device.mlx}"]
    terminal.print(Text(f"{device.kind}: {device.chip}; {'; '.join(filter(None, where))}"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ["primitive", "type", "ulps of", "rms", "max", "max, absolute"] + (["cpu rms", "cpu max"] if cpu else [])
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 3 else "right")
    for (name, dtype), figure in calibration.figures.items():
        row = [name, dtype, figure.unit, _ulps(figure.rms), _ulps(figure.largest), f"{figure.absolute:.1e}"]
        if cpu:
            there = cpu.figures.get((name, dtype))
            row += [_ulps(there.rms), _ulps(there.largest)] if there else ["-", "-"]
        table.add_row(*row)
    terminal.print(table)
    for (name, dtype), reason in calibration.missing.items():
        terminal.print(Text(f"not measured: {name} in {dtype} ({reason})"))
    terminal.print(Text(f"Subnormal products are {'replaced by 0' if calibration.flushes_subnormals else 'kept'}."))


def _ulps(x: float) -> str:
    """Two digits behind the point where they say something."""
    return f"{x:.2f}" if x < 100 else f"{x:.0f}" if x < 1e5 else f"{x:.1e}"
