"""What processes use, while any of them may end between two looks.

Run: pytest tests/test_usage.py
"""

import os
import subprocess
import sys
import time

import pytest

from parity.candidates import usage

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
WAITS = "import sys; print(1, flush=True); sys.stdin.read()"
COMPUTES = "import time; began = time.process_time()\nwhile time.process_time() - began < 0.3: pass\n"


@pytest.fixture
def child():
    """A process with a child of its own, which has computed for 0.3 s and waits."""
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {COMPUTES + WAITS!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.read(1)
        yield process


def test_a_family_is_counted_whole(child):
    members = usage.family(child.pid)
    assert len(members) == 2
    assert usage.resident(child.pid) == pytest.approx(sum(map(usage._resident, members)), rel=0.2)
    assert min(map(usage._resident, members)) > 1 << 20
    assert 0.25 <= usage.processor_time(child.pid) < 5
    assert usage._processor_time(members[1]) > 0.25


def test_children_that_were_waited_for_count():
    before = usage.processor_time(os.getpid())
    subprocess.run([sys.executable, "-c", COMPUTES], check=True)
    assert usage.processor_time(os.getpid()) - before > 0.25


def test_what_has_ended_uses_nothing():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    assert usage.family(process.pid) == [process.pid]
    assert usage.resident(process.pid) == 0
    assert usage.processor_time(process.pid) == 0


@linux
@pytest.mark.parametrize("vanishing", ["task", "children", "statm", "stat"])
def test_a_process_may_end_while_it_is_looked_at(child, monkeypatch, vanishing):
    """The compiler that a candidate starts, for one: what is looked at just then is gone."""
    (_, grandchild), look = usage.family(child.pid), []

    def gone(original):
        def asked(path, *rest):
            if str(path).startswith(f"/proc/{grandchild}/") and str(path).endswith(vanishing):
                look.append(path)
                raise FileNotFoundError(path)
            return original(path, *rest)

        return asked

    monkeypatch.setattr(os, "listdir", gone(os.listdir))
    monkeypatch.setattr(usage.Path, "read_text", gone(usage.Path.read_text))
    assert usage.resident(child.pid) > 0
    assert usage.processor_time(child.pid) >= 0
    assert look


def test_many_that_come_and_go():
    """Shells that start and end without a pause, looked at all the while."""
    code = "import subprocess\nwhile True: subprocess.run(['true'])"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        seen, began = set(), time.monotonic()
        while len(seen) < 20 and time.monotonic() - began < 60:
            seen |= {*usage.family(process.pid)}
            usage.resident(process.pid)
            usage.processor_time(process.pid)
        assert len(seen) > 1
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("printed", "seconds"), [("00:00:07", 7), ("1-02:03:04", 93784), ("12:03.50", 723.5), ("0:00.02", 0.02)]
)
def test_times_as_ps_prints_them(printed, seconds):
    assert usage._seconds(printed) == pytest.approx(seconds)
