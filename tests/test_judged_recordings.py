"""Six recordings of ports, real ones among them, keep their verdicts and their names: what a change of the diagnosis
must not undo.

Made by `parity gate PORT --only MECHANISM ... --record DIR`, without what modules gave and paths of the machine.
Run: pytest tests/test_judged_recordings.py, and with -m slow for five of the six
"""

from pathlib import Path

import pytest

from parity.jobs.gate import judge

RECORDED = Path(__file__).parent / "recordings"
RECORDINGS = {
    "rapid_mlx": ("parity", set(), set()),
    "jang": ("diverges", {"D101"}, {"D106"}),
    "mtplx": ("parity", set(), {"X016", "X017"}),
    "mlx_vlm": ("diverges", {"D050-cacheless", "D033-stepwise"}, set()),
    "last_only_untransposed": ("diverges", {"D016"}, set()),
    "wrong_in_some_calls": ("diverges", {"D026-joint@one", "D010@uncached"}, set()),
}


# Each is a diagnosis of its own; what the quick one does not show, the others do on the schedule.
QUICK = ("wrong_in_some_calls",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in RECORDINGS]
)
def test_a_recording_is_judged_as_the_port_was(name):
    verdict, named, beyond = RECORDINGS[name]
    report = judge(str(RECORDED / name), environment={})
    assert report.verdict.value == verdict
    assert {one for entry in report.diagnosis for one in entry.defects} == named
    assert {one for found in report.beyond for one in found.defects} == beyond
    assert not any("recording" in cell.sentence for cell in report.cells)  # no probe has changed since
    assert all(entry.defects for entry in report.diagnosis)
