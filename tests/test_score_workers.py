"""`parity defects` and its workers: whoever ends the harness ends them too.

Run: pytest tests/test_score_workers.py, and with -m slow for an end without a word
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parity.candidates import usage

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
PATIENCE = 120.0  # seconds for the workers to start, on a machine that does much else


def waited_for(what):
    """What is wanted, as soon as it is true."""
    until = time.monotonic() + PATIENCE
    while not (found := what()) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("ending", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_workers_end_with_the_harness(ending):
    names = [word for name in ("D016", "D017", "D018") for word in ("--id", name)]
    command = [sys.executable, "-m", "parity", "defects", "--profile", "full", *names]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as harness:
        workers = waited_for(lambda: [pid for pid in usage.family(harness.pid)[1:] if b"spawn_main" in words(pid)])
        assert workers
        harness.send_signal(ending)
        harness.wait()
    assert waited_for(lambda: not any(map(alive, workers)))


def words(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
