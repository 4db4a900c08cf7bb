"""One example from a case to a judgement: draw weights and inputs, run the candidate under its schedule, run the
reference, judge."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from ..cases.strategies import Case, checkpoint_tensors
from ..judging import oracle, undecided
from ..judging.sides import MLXSide, TorchSide
from ..pairs import Pair


def judge_case(pair: Pair, case: Case, dtype: str) -> oracle.Judged:
    """Judge `dsv4_mlx` on one example of a pair. Raises oracle.CandidateRaised.

    Only the candidate follows the case's schedule. The reference runs in one shot without state, which the first
    check of every run has shown to be the same; so a mistake between calls has nothing on the other side to hide
    behind.
    """
    tensors = checkpoint_tensors(case.config, case.seed, dtype)
    given = pair.inputs(case, dtype)
    paths = oracle.decision_paths(case.config)
    mlx = MLXSide(case.config, case.options, tensors, dtype)
    candidate = oracle.observe_candidate(mlx, lambda: pair.compute(mlx, case, given), paths)
    return judge_against_reference(pair, case, dtype, tensors, given, candidate)


def judge_against_reference(
    pair: Pair,
    case: Case,
    dtype: str,
    tensors: dict[str, Tensor],
    given: dict[str, Tensor],
    candidate: oracle.Observation,
) -> oracle.Judged:
    """Judge what a candidate gave: exact, baseline and null replay its decisions."""
    case = dataclasses.replace(case, chunks=(case.tokens,), cached=False)
    paths = oracle.decision_paths(case.config)
    replay = oracle.replayable(candidate, paths)
    exact_side = TorchSide(case.config, case.options, tensors, "float64")
    side = TorchSide(case.config, case.options, tensors, dtype)
    run = lambda: pair.compute(side, case, given)  # noqa: E731
    exactly = lambda: oracle.observe(exact_side, lambda: pair.compute(exact_side, case, given), paths, replay)  # noqa: E731
    read_exactly, exact = undecided.readings(exactly)
    read, baseline = undecided.readings(lambda: oracle.observe(side, run, paths, replay))
    if pair.exact:
        return oracle.judge_exact(baseline, candidate)
    nulls = oracle.null_runs(side, run, paths, replay, dtype, case.seed)
    nudged = []
    if read and dtype == "float32":  # in bfloat16 so many roundings fall over that they are part of the null
        nudged = undecided.cascading_runs(exactly, read_exactly, undecided.noise_level(read_exactly, read), case.seed)
    return oracle.judge(exact, baseline, nulls, candidate, exact_side.model, dtype, nudged)
