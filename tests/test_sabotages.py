"""The harness, sabotaged: its own tests go red. See tests/sabotages.py.

Run: pytest tests/test_sabotages.py; with -m slow, all of them (five minutes)
"""

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import tiny, token_ids
from sabotages import REPOSITORY, SABOTAGES, TABLE, table

from parity.cases.strategies import Profile, checkpoint_tensors
from parity.jobs.lives import LifeSearch
from parity.judging import oracle
from parity.judging.sides import TorchSide
from parity.pairs import registry
from parity.results import Verdict, overall

FAST = {"every choice is legal"}


@pytest.mark.parametrize(
    "sabotage",
    [pytest.param(one, id=one.what, marks=[] if one.what in FAST else pytest.mark.slow) for one in SABOTAGES],
)
def test_a_sabotage_is_noticed(sabotage, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    path = copy / sabotage.file
    text = path.read_text(encoding="utf-8")
    assert text.count(sabotage.old) == 1
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *shlex.split(sabotage.caught_by)]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    path.write_text(text.replace(sabotage.old, sabotage.new), encoding="utf-8")
    ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert " failed" in ended.stdout


def test_every_sabotage_quotes_one_place_and_names_tests_that_exist():
    assert len(SABOTAGES) >= 30
    assert len({one.what for one in SABOTAGES}) == len(SABOTAGES)
    for one in SABOTAGES:
        assert (REPOSITORY / one.file).read_text(encoding="utf-8").count(one.old) == 1, one.what
        assert (REPOSITORY / shlex.split(one.caught_by)[0]).exists(), one.what


def test_the_docs_list_them():
    assert TABLE.read_text(encoding="utf-8") == table()


# --- what some of them are caught by ---------------------------------------------------------------------------


def observed(**taps):
    return oracle.Observation(taps)


def test_a_reference_without_numbers_is_no_agreement():
    good = torch.ones(4, 8)
    bad = good.double().fill_(torch.nan)
    judged = oracle.judge(
        observed(a=good.double(), b=bad), observed(a=good, b=good), [], observed(a=good, b=good), None, "float32"
    )
    assert judged.ratio == float("inf")
    assert "'b' is not finite in the exact reference" in judged.worst()


def test_a_candidate_without_a_tensor_is_no_agreement():
    good = torch.ones(4, 8)
    both = observed(a=good, b=good)
    judged = oracle.judge(observed(a=good.double(), b=good.double()), both, [], observed(a=good), None, "float32")
    assert judged.ratio == float("inf")
    assert "'b' was not produced" in judged.worst()


def test_nothing_is_no_pass():
    assert overall([]) is Verdict.COVERAGE_GAP
    nothing = dataclasses.replace(Profile("none", 1, 20), lives=0, operations=0)
    search = LifeSearch(registry()["cache"], "float32", nothing, 0)
    assert search.result([]).verdict is Verdict.COVERAGE_GAP


def test_exact_has_twice_the_bits():
    config = tiny((0,))
    side = TorchSide(config, {}, checkpoint_tensors(config, 0, "float32"), "float64")
    logits = side.model(token_ids(config, 5), None)
    assert logits.dtype == torch.float64
    assert not torch.equal(logits.float().double(), logits)
