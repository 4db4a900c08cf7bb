"""What a process and its descendants use: memory and processor time.

Any of them may end between two looks; what has ended uses nothing.
"""

import os
import subprocess
import sys
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")  # a second
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


def processor_time(pid: int) -> float:
    """Seconds that the process, its descendants and the children that it has waited for have computed."""
    return sum(_processor_time(member) for member in family(pid))


def _children(pid: int) -> list[int]:
    if sys.platform != "linux":
        return [int(child) for child in _output("pgrep", "-P", str(pid)).split()]
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [int(child) for thread in threads for child in _read(f"/proc/{pid}/task/{thread}/children").split()]


def _resident(pid: int) -> int:
    if sys.platform != "linux":
        return sum(int(size) for size in _output("ps", "-o", "rss=", "-p", str(pid)).split()) * 1024
    sizes = _read(f"/proc/{pid}/statm").split()
    return int(sizes[1]) * PAGE if sizes else 0


def _processor_time(pid: int) -> float:
    if sys.platform != "linux":
        return sum(_seconds(spent) for spent in _output("ps", "-o", "time=", "-p", str(pid)).split())
    # The name, in brackets, may hold anything; utime is the 12th field after it, then stime and both of the children.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def _seconds(spent: str) -> float:
    """Of the form that ps prints: [[days-]hours:]minutes:seconds."""
    days, _, clock = spent.rpartition("-")
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return int(days or 0) * 86400 + total


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
