"""A device is looked at in a process of its own, with the Python that candidates run in and their settings of MLX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ..environment import TF32_VARIABLE
from ..errors import BadEnvironment, NoDevice
from .results import Calibration

LONGEST = 300.0  # seconds; it takes one on two old cores, and a first run on a GPU builds its kernels
LONGEST_REASON = 300
# What `candidates.surroundings` gives a candidate: other threads are other sums, TF32 other products.
SETTINGS = {TF32_VARIABLE: "0", "MLX_DISABLE_COMPILE": "1"}
NEEDS = {
    "cpu": "run `parity gate` to see what is wrong with it",
    "gpu": "MLX needs Apple silicon, or on Linux an NVIDIA GPU and one of the wheels mlx[cuda12] and mlx[cuda13]",
}


def identify(kind: str) -> Calibration:
    """The device alone, without figures. Raises NoDevice, BadEnvironment."""
    return ask(kind, "identify")


def measure(kind: str) -> Calibration:
    """The device and its figures. Raises NoDevice, BadEnvironment."""
    return ask(kind, "measure")


def ask(kind: str, what: str, timeout: float = LONGEST) -> Calibration:
    """One process, one answer."""
    package = str(Path(__file__).resolve().parents[2])
    # -P: the folder that it is called in must not provide modules. The package may be importable only from here.
    code = f"import sys; sys.path.insert(0, {package!r}); from parity.devices.child import main; "
    code += f"main({kind!r}, {what == 'measure'})"
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | SETTINGS
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise BadEnvironment(f"Measuring MLX's {kind} took longer than {timeout:g} s; it hangs.") from error
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        if "absent" in answer:
            raise NoDevice(f"MLX finds no {kind} here ({_short(answer['absent'])}); {NEEDS[kind]}.")
        found = Calibration.from_dict(answer)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise BadEnvironment(
            f"MLX's {kind} could not be measured: the process ended with code {done.returncode} ({_short(said[0])})."
        ) from error
    return found


def _short(text: object) -> str:
    return str(text)[:LONGEST_REASON].rstrip(". ")
