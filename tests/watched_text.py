"""A text as a port whose lines are watched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from parity.candidates import told
from parity.candidates.watching import Watch, own_files


def watched(folder: Path, text: str, call: str = "main()") -> told.Watched:
    """What the lines of a text compute, as the harness gets it from another process."""
    file = folder / "port.py"
    file.write_text(text)
    names = {}
    exec(compile(text, str(file), "exec"), names)
    watch = Watch(own_files(str(file)))
    with watch.watching():
        eval(call, names)
    flat, index = watch.told()
    return told.watched(json.loads(json.dumps(index)), flat)


def name_of(value: np.ndarray, named: dict[str, np.ndarray]) -> str:
    """Which of these sorted values a value of a run is, or nothing. Those of the tests are no nearer to each other than
    0.1, and float32 is off by 1e-6 there."""
    same = lambda one: one.shape == value.shape and np.allclose(np.sort(value), one, atol=1e-5)  # noqa: E731
    return next((name for name, one in named.items() if same(one)), "")
