"""A text as a port whose lines are watched."""

from __future__ import annotations

import json
from pathlib import Path

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
