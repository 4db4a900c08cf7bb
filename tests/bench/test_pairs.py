"""nox -s bench — examples per second of each pair: `OPS` of the benchmark's table is examples judged per second."""

import itertools

import hypothesis
import pytest
from hypothesis import Phase, settings

from parity.examples import judge_case
from parity.pairs import registry
from parity.strategies import PROFILES

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


@pytest.mark.parametrize(
    ("name", "dtype"), [(pair.name, dtype) for pair in registry().values() for dtype in pair.dtypes]
)
def test_examples_per_second(benchmark, name, dtype):
    pair = registry()[name]
    cases = itertools.cycle(drawn(pair))
    judged = benchmark.pedantic(lambda: judge_case(pair, next(cases), dtype), rounds=CASES, warmup_rounds=1)
    assert judged.taps
