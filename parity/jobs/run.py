"""`parity run`: the reference against itself, every pair, then the whole model by layer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from ..cases.strategies import Case, Profile
from ..errors import stopped_by
from ..pairs import LifePair, Pair, Row, registry
from ..results import Finding, PairResult, Report, Verdict, overall
from . import consistency, layers
from .lives import Life, LifeSearch
from .search import Search

Progress = Callable[[str], None]

SEARCHES = {Pair: Search, LifePair: LifeSearch}


def run(
    profile: Profile,
    names: list[str],
    dtypes: list[str],
    seed: int,
    environment: dict,
    progress: Progress = lambda text: None,
    case: Case | Life | None = None,
    check: bool = True,
) -> Report:
    """Judge the named pairs (all, when none is named) in these types; with a `case`, only that one example. `check`:
    the reference is held to itself first."""
    report = Report(
        command="run", profile=profile.name, seed=seed, verdict=Verdict.PARITY, sentence="", environment=environment
    )
    try:
        _fill(report, profile, names, dtypes, seed, progress, case, check and case is None)
    except KeyboardInterrupt as stop:
        report.verdict = Verdict.INTERRUPTED
        by = stopped_by(stop)
        report.sentence = f"Interrupted{by} after {len(report.pairs)} rows."
        return report
    return _concluded(report)


def _fill(
    report: Report,
    profile: Profile,
    names: list[str],
    dtypes: list[str],
    seed: int,
    progress: Progress,
    case: Case | Life | None,
    check: bool,
) -> None:
    """What the run finds, into the report as it comes."""
    pairs = [pair for name, pair in registry().items() if not names or name in names]
    clock = report.clock = {"reference_s": 0.0, "pairs_s": {}, "layers_s": 0.0}
    started = time.monotonic()
    if check:
        progress("reference against itself")
        report.consistency = consistency.check(profile, seed)
        clock["reference_s"] = round(time.monotonic() - started, 2)
        if any(result.verdict is not Verdict.PARITY for result in report.consistency):
            return
    for pair in pairs:
        for dtype in (dtype for dtype in pair.dtypes if dtype in dtypes):
            progress(f"{pair.name} in {dtype}")
            began = time.monotonic()
            report.pairs.append(_judge(pair, dtype, profile, seed, report.pairs, case))
            clock["pairs_s"][f"{pair.name}/{dtype}"] = round(time.monotonic() - began, 2)
    if case is None and not names:
        began = time.monotonic()
        for name in layers.MODELS:
            for dtype in dtypes:
                progress(f"{name} model by layer in {dtype}")
                report.layers += layers.judge_layers(name, dtype, seed)
        clock["layers_s"] = round(time.monotonic() - began, 2)
    clock["total_s"] = round(time.monotonic() - started, 2)


def _judge(
    pair: Row, dtype: str, profile: Profile, seed: int, earlier: list[PairResult], case: Case | Life | None
) -> PairResult:
    """One row. Below a red part only the verdict is of interest: the example is not shrunk, and the part is named."""
    search = SEARCHES[type(pair)](pair, dtype, profile, seed)
    if case is not None:
        return search.replay(case)
    red = {result.name for result in earlier if result.verdict is not Verdict.PARITY}
    because = [name for name in _parts(pair) if name in red]
    result = search.run(shrink=not because)
    return dataclasses.replace(result, because=because if result.verdict is not Verdict.PARITY else [])


def _parts(pair: Row) -> list[str]:
    """Everything that a pair is built from, at any depth, in dependency order."""
    known, parts = registry(), []
    for name in pair.contains:
        parts += [part for part in (*_parts(known[name]), name) if part not in parts]
    return parts


def _concluded(report: Report) -> Report:
    """The verdict, the sentence that explains it, and the first finding in dependency order."""
    inconsistent = [result for result in report.consistency if result.verdict is not Verdict.PARITY]
    if inconsistent:
        failure = inconsistent[0].failure
        report.verdict = Verdict.INCONCLUSIVE
        report.sentence = (
            f"The reference disagrees with itself between one shot and {failure.schedule} "
            f"({failure.sentence}), so nothing else was judged."
        )
        return report
    verdicts = [result.verdict for result in (*report.pairs, *report.layers)]
    report.verdict = overall(verdicts)
    roots = [result for result in report.pairs if result.verdict is not Verdict.PARITY and not result.because]
    if report.verdict is Verdict.PARITY:
        report.sentence = (
            f"dsv4_mlx computes what the reference computes: {len(report.pairs)} of {len(report.pairs)} rows agree."
        )
    elif roots and report.verdict is not Verdict.COVERAGE_GAP:
        report.finding = _finding(roots[0], {result.name for result in report.pairs})
        report.sentence = f"{report.finding.pair} is where dsv4_mlx deviates first: {report.finding.sentence}."
    elif roots and roots[0].failure is not None:  # a gap
        report.sentence = f"Not all is offered that {roots[0].name} judges: {roots[0].failure.sentence}."
    elif report.verdict is Verdict.COVERAGE_GAP:
        report.sentence = "Nothing was compared; name at least one pair in a type that it supports."
    else:
        bad = next(result for result in report.layers if result.verdict is not Verdict.PARITY)
        report.sentence = (
            f"Every pair agrees, but layer {bad.layer} of the {bad.model} model in {bad.dtype} does "
            "not: what joins its parts is wrong."
        )
    return report


def _finding(result: PairResult, judged: set[str]) -> Finding:
    """The first deviation; where all of its parts were judged and agree, what joins them is wrong."""
    parts = registry()[result.name].contains
    glue = (
        f" (its parts {', '.join(parts)} all agree, so what joins them is wrong)"
        if parts and judged >= {*parts}
        else ""
    )
    failure = result.failure
    where = f"{failure.sentence}, on {failure.schedule}" if failure else "no tensor was compared"
    return Finding(result.name, result.dtype, where + glue, failure.reproduce if failure else "")
