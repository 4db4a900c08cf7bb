"""How much memory a process and its descendants hold."""

import os
import subprocess
import sys
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
POLL = 0.05 if sys.platform == "linux" else 0.25  # seconds; elsewhere each look starts a program


def family(pid: int) -> list[int]:
    """The process and all its descendants, those that left its process group too."""
    found = [pid]
    for parent in found:
        found.extend(_children(parent))
    return found


def resident(pid: int) -> int:
    """Resident bytes of the process and its descendants; 0 where it has ended."""
    return sum(_resident(member) for member in family(pid))


def _children(pid: int) -> list[int]:
    if sys.platform != "linux":
        return [int(child) for child in _output("pgrep", "-P", str(pid)).split()]
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found.extend(int(child) for child in task.read_text().split())
        except OSError:  # the thread has ended
            continue
    return found


def _resident(pid: int) -> int:
    if sys.platform != "linux":
        return sum(int(size) for size in _output("ps", "-o", "rss=", "-p", str(pid)).split()) * 1024
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except OSError:
        return 0


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
