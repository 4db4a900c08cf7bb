"""nox -s bench — examples per second of each pair: `OPS` of the benchmark's table is examples judged per second.

An example of the pair of lives is one life.
"""

import itertools

import hypothesis
import pytest
from hypothesis import Phase, settings

from parity.cases.strategies import PROFILES, Profile
from parity.jobs.examples import judge_case
from parity.jobs.lives import LifeSearch
from parity.pairs import LifePair, Pair, registry
from parity.results import Verdict

CASES = 8


def drawn(pair):
    """The same few cases of a pair at every run."""
    found = []

    @hypothesis.seed(0)
    @settings(
        max_examples=CASES, phases=[Phase.generate], database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(pair.cases(PROFILES["quick"]))
    def collect(case):
        found.append(case)

    collect()
    return found


def rows(kind):
    return [(pair.name, dtype) for pair in registry().values() if isinstance(pair, kind) for dtype in pair.dtypes]


@pytest.mark.parametrize(("name", "dtype"), rows(Pair))
def test_examples_per_second(benchmark, name, dtype):
    pair = registry()[name]
    cases = itertools.cycle(drawn(pair))
    judged = benchmark.pedantic(lambda: judge_case(pair, next(cases), dtype), rounds=CASES, warmup_rounds=1)
    assert judged.taps


@pytest.mark.parametrize(("name", "dtype"), rows(LifePair))
def test_lives_per_second(benchmark, name, dtype):
    seeds, one = itertools.count(), Profile("one", 1, 180, 1, 15)
    search = lambda: LifeSearch(registry()[name], dtype, one, next(seeds)).run(shrink=False)  # noqa: E731
    result = benchmark.pedantic(search, rounds=CASES, warmup_rounds=1)
    assert result.verdict is Verdict.PARITY
