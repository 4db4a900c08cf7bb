"""pytest tests/test_report_plugin.py — `pytest --parity-candidate` in a port's own suite."""

import dataclasses
import pickle
import sys
from types import SimpleNamespace

import pytest

from parity.beside.plan import Plan
from parity.errors import BadInput
from parity.gate.lives import CACHES, LIVES
from parity.gate.probes import of_profile
from parity.gate.results import Candidate, Cell, Diagnosis, GateReport, Place, WrongLine
from parity.jobs.gate_command import Asked
from parity.results import Verdict

pytest_plugins = ["pytester"]
CANDIDATE = "mlx_lm.models.deepseek_v4"
PLACES = [(probe.mechanism, schedule) for probe in of_profile("quick") for schedule in probe.schedules]
PLACES.append((CACHES, LIVES))
SPECIAL = {
    PLACES[1]: (Verdict.DIVERGES, "logits differ from token 5 on"),
    PLACES[2]: (Verdict.CRASHED, "ValueError: cannot reshape"),
    PLACES[3]: (Verdict.COVERAGE_GAP, "takes one row at a time"),
}


def judged(places=PLACES):
    cells = [Cell(*place, *SPECIAL.get(place, (Verdict.PARITY, ""))) for place in places]
    diagnosis = [Diagnosis(["D016"], ["mixing"], "This port mixes by comb.", ["y = comb.T @ x"])]
    lines = [WrongLine("line", *PLACES[1], "`y` is what D016 makes of it", at=Place("v4.py", 101, 102, "post"))]
    report = GateReport(Candidate(CANDIDATE, "module"), "quick", 0, Verdict.DIVERGES, "It diverges.", cells=cells)
    return dataclasses.replace(report, diagnosis=diagnosis, lines=lines)


@pytest.fixture
def judge(monkeypatch):
    """Stands for parity.jobs.gate.judge; remembers its calls."""
    calls = []

    def stand_in(target, asked, plan):
        assert plan == Plan()  # there is no GPU here
        calls.append((target, asked))
        if isinstance(stand_in.answer, Exception):
            raise stand_in.answer
        return stand_in.answer

    stand_in.answer, stand_in.calls = judged(), calls
    monkeypatch.setitem(sys.modules, "parity.jobs.gate", SimpleNamespace(judge=stand_in))
    return stand_in


def run(pytester, *arguments):
    return pytester.runpytest_inprocess("-p", "parity.pytest_plugin", "-p", "no:cacheprovider", *arguments)


def test_every_cell_is_a_test_and_the_gate_runs_once(pytester, judge):
    result = run(pytester, "--parity-candidate", CANDIDATE, "-rs")
    result.assert_outcomes(passed=len(PLACES) - 3, failed=2, skipped=1)
    assert judge.calls == [(CANDIDATE, Asked(profile="quick"))]
    text = result.stdout.str()
    for (mechanism, schedule), (_, sentence) in SPECIAL.items():
        assert sentence in text
        assert f"{mechanism}[{schedule}]" in text or sentence == "takes one row at a time"
    assert "This port mixes by comb." in text
    assert "it should read: y = comb.T @ x" in text
    assert text.count("In its own code: at v4.py:101: `y` is what D016 makes of it\n") == 1
    assert "Traceback" not in text


def test_without_the_option_nothing_happens(pytester, judge):
    pytester.makepyfile("def test_own(): pass")
    result = run(pytester)
    result.assert_outcomes(passed=1)
    assert judge.calls == []
    assert "parity gate" not in result.stdout.str()


def test_stands_beside_the_ports_own_tests_and_can_be_chosen(pytester, judge):
    pytester.makepyfile("def test_own(): pass")
    mechanism, schedule = PLACES[0]
    run(pytester, "--parity-candidate", CANDIDATE, "-k", f"{mechanism}[{schedule}] or test_own").assert_outcomes(
        passed=2, deselected=len(PLACES) - 1
    )


def test_collecting_runs_no_gate(pytester, judge):
    result = run(pytester, "--parity-candidate", CANDIDATE, "--collect-only", "-q")
    assert judge.calls == []
    assert f"{PLACES[0][0]}[{PLACES[0][1]}]" in result.stdout.str()


def test_no_verdict_on_the_cells_fails_them_all(pytester, judge):
    judge.answer = judged(places=[])
    result = run(pytester, "--parity-candidate", CANDIDATE)
    result.assert_outcomes(failed=len(PLACES))
    assert "It diverges." in result.stdout.str()


def test_a_candidate_that_does_not_exist_is_one_sentence(pytester, judge):
    judge.answer = BadInput("nothing is called so.")
    result = run(pytester, "--parity-candidate", "nothing")
    result.assert_outcomes(failed=len(PLACES))
    assert len(judge.calls) == 1
    assert "nothing is called so." in result.stdout.str()
    assert "Traceback" not in result.stdout.str()


def test_a_failing_harness_is_asked_once(pytester, judge):
    judge.answer = RuntimeError("broken")
    result = run(pytester, "--parity-candidate", CANDIDATE)
    result.assert_outcomes(failed=len(PLACES))
    assert len(judge.calls) == 1
    assert "the harness itself failed (RuntimeError: broken)" in result.stdout.str()


def test_unknown_profile(pytester, judge):
    result = run(pytester, "--parity-candidate", CANDIDATE, "--parity-profile", "fast")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "known: quick, full, exhaustive" in result.stderr.str() + result.stdout.str()


def test_an_empty_candidate_judges_nothing_and_says_so(pytester, judge):
    pytester.makepyfile("def test_own(): pass")
    result = run(pytester, "--parity-candidate", "")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--parity-candidate is empty" in result.stderr.str() + result.stdout.str()
    assert judge.calls == []


def test_ids_can_be_given_as_those_of_any_test(pytester, judge):
    pytester.makepyfile("def test_own(): pass")
    ids = [f"parity[{CANDIDATE}]::{mechanism}[{schedule}]" for mechanism, schedule in PLACES[:2]]
    run(pytester, "--parity-candidate", CANDIDATE, *ids).assert_outcomes(passed=1, failed=1)
    run(
        pytester, "--parity-candidate", CANDIDATE, ids[0], "test_ids_can_be_given_as_those_of_any_test.py"
    ).assert_outcomes(passed=2)
    run(pytester, "--parity-candidate", CANDIDATE, f"parity[{CANDIDATE}]").assert_outcomes(
        passed=len(PLACES) - 3, failed=2, skipped=1
    )
    result = run(pytester, "--parity-candidate", CANDIDATE, f"parity[{CANDIDATE}]::hc.posts[decode]")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "There is no test parity[" in result.stderr.str() + result.stdout.str()


def test_last_failed(pytester, judge):
    arguments = ("-p", "parity.pytest_plugin", "--parity-candidate", CANDIDATE)
    pytester.runpytest_inprocess(*arguments).assert_outcomes(passed=len(PLACES) - 3, failed=2, skipped=1)
    judge.answer = judged(places=PLACES)
    again = pytester.runpytest_inprocess(*arguments, "--lf")
    again.assert_outcomes(failed=2)


CONFTEST = """
import pathlib, pickle, sys
from types import SimpleNamespace

def judge(*arguments, **options):
    with open({calls!r}, "a") as file:
        file.write("judged\\n")
    return pickle.loads(pathlib.Path({answer!r}).read_bytes())

sys.modules["parity.jobs.gate"] = SimpleNamespace(judge=judge)
"""


@pytest.mark.slow
def test_under_xdist_one_worker_judges(pytester, tmp_path):
    calls, answer = tmp_path / "calls", tmp_path / "answer"
    answer.write_bytes(pickle.dumps(judged()))
    pytester.makeconftest(CONFTEST.format(calls=str(calls), answer=str(answer)))
    result = pytester.runpytest_subprocess("-p", "parity.pytest_plugin", "-n", "2", "--parity-candidate", CANDIDATE)
    result.assert_outcomes(passed=len(PLACES) - 3, failed=2, skipped=1)
    assert calls.read_text() == "judged\n"
    assert "This port mixes by comb." in result.stdout.str()
    first = f"parity[{CANDIDATE}]::{PLACES[1][0]}[{PLACES[1][1]}]"
    pytester.runpytest_subprocess(
        "-p", "parity.pytest_plugin", "-n", "2", "--parity-candidate", CANDIDATE, first
    ).assert_outcomes(failed=1)


def test_torch_is_as_it_was(pytester, judge):
    import torch

    before = torch.get_num_threads()
    seen = []
    judge.answer = judged()
    original = sys.modules["parity.jobs.gate"].judge
    sys.modules["parity.jobs.gate"].judge = lambda *a, **o: (seen.append(torch.get_num_threads()), original(*a, **o))[1]
    torch.set_num_threads(3)
    try:
        run(pytester, "--parity-candidate", CANDIDATE)
        assert (seen, torch.get_num_threads()) == ([1], 3)
    finally:
        torch.set_num_threads(before)


def test_an_interrupted_gate_ends_the_tests(pytester, judge):
    judge.answer = dataclasses.replace(judged(places=[]), verdict=Verdict.INTERRUPTED)
    arguments = ("-p", "parity.pytest_plugin", "-p", "no:cacheprovider", "--parity-candidate", CANDIDATE)
    result = pytester.runpytest_inprocess(*arguments, no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert len(judge.calls) == 1
