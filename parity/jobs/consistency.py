"""The first check of every run: the reference agrees with itself, or nothing else is judged (method, section 5).

Its one-shot, chunked and token-by-token forms must agree in float64 to float64's own rounding.
"""

from __future__ import annotations

import dataclasses

from ..cases.strategies import Case, Profile, checkpoint_tensors
from ..judging import oracle
from ..judging.sides import TorchSide
from ..pairs import registry
from ..results import PairResult, Verdict
from .search import Search


class SelfSearch(Search):
    """Cases of the pairs `model` and `mtp`, the candidate being the reference under the case's schedule."""

    def example(self, case: Case) -> None:
        self.stop_in_time()
        judged = judge_itself(self.pair, case)
        if not self.failure:
            self.count(judged)
        if judged.ratio > 1:
            self.fail(case, judged.worst(), Verdict.INCONCLUSIVE)


def judge_itself(pair, case: Case) -> oracle.Judged:
    """The reference in float64 under the case's schedule against its own one-shot run."""
    tensors = checkpoint_tensors(case.config, case.seed, "float32")
    given = pair.inputs(case, "float32")
    paths = oracle.decision_paths(case.config)
    side = TorchSide(case.config, case.options, tensors, "float64")
    incremental = oracle.observe(side, lambda: pair.compute(side, case, given), paths)
    whole = dataclasses.replace(case, chunks=(case.tokens,), cached=False)
    replay = oracle.replayable(incremental, paths)
    run = lambda: pair.compute(side, whole, given)  # noqa: E731
    exact = oracle.observe(side, run, paths, replay)
    nulls = oracle.null_runs(side, run, paths, replay, "float64", case.seed)
    return oracle.judge(exact, exact, nulls, incremental, side.model, "float64")


def check(profile: Profile, seed: int) -> list[PairResult]:
    """The reference against itself, for the model and the MTP block."""
    few = dataclasses.replace(profile, examples=max(profile.examples // 2, 2), tokens=min(profile.tokens, 140))
    pairs = registry()
    return [SelfSearch(pairs[name], "float64", few, seed).run(shrink=True) for name in ("model", "mtp")]
