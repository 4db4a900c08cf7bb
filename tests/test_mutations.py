"""Put a known defect into `dsv4_mlx`: the run turns red and names the part that carries it.

Every run is that of `parity run`, but for the pairs: the one that must be blamed, its parts, and what contains it.
Run: pytest tests/test_mutations.py
"""

import dataclasses
import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dsv4_mlx
from parity.cases.strategies import PROFILES, Case
from parity.gate.defects import catalogue
from parity.gate.defects.patching import applied, edited
from parity.jobs import consistency, search
from parity.jobs.run import run
from parity.pairs import registry
from parity.results import Verdict

SEED = 0
DEFECTS = [defect for defect in catalogue().values() if defect.pair]
BY_ID = catalogue()
DTYPES = ["float32", "bfloat16"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One thread, little shrinking, and the reference's check of itself once: no mutation reaches it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(search, "SHRINK_SECONDS", 0.3)
    monkeypatch.setattr(consistency, "check", checked_once)
    yield
    torch.set_num_threads(threads)


checked_once = functools.cache(consistency.check)


def neighbourhood(*names: str) -> list[str]:
    """These pairs, their parts, and the pairs that contain them; never the whole model, which is slow."""
    pairs = registry()
    near = {*names, *(part for name in names for part in pairs[name].contains)}
    near |= {name for name, pair in pairs.items() if {*names} & {*pair.contains}}
    return [name for name in pairs if name in near and name != "model"]


def judge(*names: str, **options):
    return run(PROFILES["quick"], list(names), options.pop("dtypes", DTYPES), SEED, {}, **options)


def judge_case(failure) -> Verdict:
    """The verdict on one printed case, found again by its own command."""
    words = shlex.split(failure.reproduce)
    options = dict(zip(words[2::2], words[3::2], strict=True))
    report = judge(options["--pair"], dtypes=[options["--dtype"]], case=Case.from_json(options["--case"]))
    return report.verdict


def first_failure(report):
    return next(row.failure for row in report.pairs if row.failure)


@pytest.mark.slow  # `nox -s parity` shows the same
def test_every_pair_is_green_without_a_mutation():
    report = judge(*(name for name in registry() if name != "model"))
    assert report.verdict is Verdict.PARITY, report.sentence


# Two of each pair are enough for every commit, and these take longer than others of the same pairs.
SLOW = {*"D001 D042 D050-overlap D050-plain D051-plain-early D051-plain-late D052 D056 D056-counted".split()}
for name in {defect.pair[0] for defect in DEFECTS}:
    SLOW |= {d.id for d in [d for d in DEFECTS if d.pair[0] == name and d.id not in SLOW][1:]}


@pytest.mark.parametrize(
    "defect", [pytest.param(d, id=d.id, marks=[pytest.mark.slow] * (d.id in SLOW)) for d in DEFECTS]
)
def test_the_mutated_part_is_named(defect):
    with applied([defect], "dsv4_mlx"):
        report = judge(*neighbourhood(*defect.pair), dtypes=[defect.only or "float32"])
        if not (report.finding and report.finding.pair in defect.pair):  # a default run has both types
            report = judge(*neighbourhood(*defect.pair))
    assert report.verdict is Verdict.DIVERGES
    assert report.finding.pair in defect.pair
    assert report.finding.reproduce.startswith(
        f"parity run --pair {report.finding.pair} --dtype {report.finding.dtype} --"
    )


@pytest.mark.parametrize("defect", [d for d in DEFECTS if d.only], ids=lambda defect: defect.id)
def test_a_mutation_of_one_type_is_invisible_in_the_other(defect):
    (other,) = {*DTYPES} - {defect.only}
    with applied([defect], "dsv4_mlx"):
        report = judge(*defect.pair)
    assert {row.dtype for row in report.pairs if row.verdict is Verdict.DIVERGES} == {defect.only}
    assert all(row.cases == PROFILES["quick"].examples for row in report.pairs if row.dtype == other)


@pytest.mark.parametrize("defect", [d for d in DEFECTS if d.between_calls], ids=lambda defect: defect.id)
def test_a_mutation_between_calls_is_invisible_in_one_call(defect):
    with applied([defect], "dsv4_mlx"):
        failure = first_failure(judge(*defect.pair))
        case = Case(**failure.case)
        assert len(case.chunks) > 1
        assert judge_case(failure) is Verdict.DIVERGES
        whole = dataclasses.replace(case, chunks=(case.tokens,))
        assert judge(*defect.pair, case=whole).verdict is Verdict.PARITY


def test_the_case_of_a_finding_shows_it_again():
    with applied([BY_ID["D016"]], "dsv4_mlx"):
        failure = first_failure(judge("hyper_connection.post"))
        assert judge_case(failure) is Verdict.DIVERGES
    assert judge_case(failure) is Verdict.PARITY


def test_an_edited_copy_of_the_package_is_judged_by_the_command(tmp_path):
    """Nothing in process: one file of a copy is edited, and `parity run` gives exit code and report."""
    for package in ("dsv4_mlx", "parity", "reference_torch"):
        shutil.copytree(Path(dsv4_mlx.__file__).parents[1] / package, tmp_path / package)
    for name, text in edited([BY_ID["D033"]], "dsv4_mlx").items():
        (tmp_path / "dsv4_mlx" / name).write_text(text)
    names = [word for name in neighbourhood("compressor.overlap") for word in ("--pair", name)]
    ended = subprocess.run(
        [sys.executable, "-m", "parity", "run", *names, "--dtype", "float32", "--json", "report.json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == Verdict.DIVERGES.exit_code, ended.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"] == "diverges"
    assert report["finding"]["pair"] == "compressor.overlap"
    assert "compressor.overlap" in ended.stdout
    assert (
        len(report["pairs"][-1]["failure"]["case"]["chunks"]) > 1 or report["pairs"][-1]["name"] != "compressor.overlap"
    )
