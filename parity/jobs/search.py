"""Looking for a deviation of one pair in one type: hypothesis draws, judges, and shrinks what fails."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
import zlib
from collections import defaultdict

import hypothesis
from hypothesis import HealthCheck, Phase, settings

from ..cases import schedules
from ..cases.strategies import Case, Profile
from ..judging.oracle import CandidateRaised, Judged
from ..judging.tolerance import Measurement, tap_of
from ..pairs import Pair
from ..results import Failure, PairResult, Verdict
from .examples import judge_case


class Deviation(AssertionError):
    """One example is beyond its limit."""


class Enough(BaseException):
    """The time for shrinking is over; not an Exception, so that hypothesis does not take it for a finding."""


SHRINK_SECONDS = 10.0


class Search:
    """One pair in one type: `run` gives its result."""

    def __init__(self, pair: Pair, dtype: str, profile: Profile, seed: int):
        self.pair, self.dtype, self.profile, self.seed = pair, dtype, profile, seed
        self.taps: dict[str, list[Measurement]] = defaultdict(list)
        self.cases = self.ties = self.decisions = 0
        self.failure: tuple[Case, str, Verdict] | None = None
        self.first_failure_at = 0.0

    def run(self, shrink: bool) -> PairResult:
        """Draw the profile's examples; on a deviation, shrink it if asked, within SHRINK_SECONDS."""
        phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)

        @hypothesis.seed(zlib.crc32(f"{self.seed}/{self.pair.name}/{self.dtype}".encode()))
        @settings(
            max_examples=self.profile.examples,
            phases=phases,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(self.pair.cases(self.profile))
        def example(case):
            self.example(case)

        with contextlib.suppress(Deviation, Enough):
            example()
        return self.result(shrink)

    def replay(self, case: Case) -> PairResult:
        """Judge one printed case again."""
        with contextlib.suppress(Deviation):
            self.example(case)
        return self.result(shrunk=False)

    def example(self, case: Case) -> None:
        """Judge one case; the first deviation stops counting and starts shrinking."""
        self.stop_in_time()
        try:
            judged = judge_case(self.pair, case, self.dtype)
        except CandidateRaised as error:
            self.fail(case, f"dsv4_mlx raised {error}", Verdict.CRASHED)
        if not self.failure:
            self.count(judged)
        if judged.ratio > 1:
            self.fail(case, judged.worst(), Verdict.DIVERGES)

    def stop_in_time(self) -> None:
        """Raise Enough where a deviation has been made smaller for long enough."""
        if self.failure and time.monotonic() - self.first_failure_at > SHRINK_SECONDS:
            raise Enough

    def count(self, judged: Judged) -> None:
        self.cases += 1
        for name, measurement in judged.taps.items():
            self.taps[name].append(measurement)
        self.ties += sum(choice.ties for choice in judged.choices.values())
        self.decisions += sum(choice.tokens for choice in judged.choices.values())

    def fail(self, case: Case, sentence: str, verdict: Verdict) -> None:
        if not self.failure:
            self.first_failure_at = time.monotonic()
        self.failure = (case, sentence, verdict)
        raise Deviation(sentence)

    def result(self, shrunk: bool) -> PairResult:
        """The pair's row: its taps pooled, its verdict, and its failure if there is one."""
        taps = [tap_of(name, self.taps[name]) for name in sorted(self.taps)]
        ratio = max((max(tap.worst_ratio, tap.pooled_ratio) for tap in taps), default=0.0)
        failure, verdict = None, Verdict.PARITY
        if self.failure:
            case, sentence, verdict = self.failure
            failure = Failure(
                sentence, dataclasses.asdict(case), schedules.describe(case), self.reproduce(case), shrunk
            )
            ratio = max(ratio, 1.0)
        elif not taps:
            verdict = Verdict.COVERAGE_GAP
        elif ratio > 1:
            verdict = Verdict.DIVERGES
            worst = max(taps, key=lambda tap: tap.pooled_ratio)
            sentence = (
                f"'{worst.name}' stays within the limit of every single example, but pooled over "
                f"{worst.examples} examples its RMS error "
                f"is {worst.pooled_ratio:.3g} times what the null allows"
            )
            failure = Failure(sentence, None, f"all {worst.examples} examples", self.reproduce(None))
        return PairResult(
            name=self.pair.name,
            title=self.pair.title,
            spec=self.pair.spec,
            dtype=self.dtype,
            verdict=verdict,
            cases=self.cases,
            ratio=ratio,
            ties=self.ties,
            decisions=self.decisions,
            taps=taps,
            failure=failure,
        )

    def reproduce(self, case: Case | None) -> str:
        """The command that shows the failure again."""
        command = f"parity run --pair {self.pair.name} --dtype {self.dtype}"
        if case is None:
            return f"{command} --profile {self.profile.name} --seed {self.seed}"
        return f"{command} --case {shlex.quote(case.to_json())}"
