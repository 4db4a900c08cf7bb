"""The process that looks at a device; started by `process.ask`. Its last line on standard output is the answer.

Here and nowhere else MLX is imported: the harness's own process may have used it with other settings.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from pathlib import Path

from ..environment import installed_version, loaded_blas
from .results import Calibration, Device

NVIDIA = Path("/proc/driver/nvidia/version")


def main(kind: str, measured: bool) -> None:
    """Print a device, or with `measured` its calibration; {"absent": reason} where there is none of this kind."""
    import mlx.core as mx

    device = mx.Device(getattr(mx, kind))
    try:
        mx.set_default_device(device)
        mx.eval(mx.ones(2) + 1)
    except Exception as error:  # no backend for it, or nothing behind the backend
        answer = {"absent": " ".join(str(error).split())}
    else:
        answer = _answer(mx, device, kind, measured)
    print(json.dumps(answer))


def _answer(mx, device, kind: str, measured: bool) -> dict[str, object]:
    figures = missing = {}
    if measured:
        from .measuring import measure

        figures, missing = measure(device)
    return Calibration(identity(mx, device, kind), figures, missing).to_dict()


def identity(mx, device, kind: str) -> Device:
    """Of the device that MLX calls so."""
    try:
        info = mx.device_info(device)
    except TypeError:  # older releases tell of the default device only
        info = mx.device_info()
    return Device(
        kind,
        str(info.get("device_name", "unknown")),
        platform.platform(),
        _driver() if kind == "gpu" else "",
        tuple(loaded_blas()),
        installed_version("mlx") or getattr(mx, "__version__", "unknown"),
    )


def _driver() -> str:
    """CUDA's has a version of its own; Metal's is part of the system."""
    try:
        found = re.search(r"\d+\.\d+[.\d]*", NVIDIA.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found[0] if found else ""


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "measure")
