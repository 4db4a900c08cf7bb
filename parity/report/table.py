"""The terminal view of a report."""

from __future__ import annotations

import math

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..results import LayerResult, PairResult, Report, Verdict

COLOURS = {Verdict.PARITY: "green", Verdict.DIVERGES: "red", Verdict.CRASHED: "red", Verdict.DEVICE: "red"}


def show(report: Report, console: Console) -> None:
    """Tables, what deviates with the command that shows it again, where the time went, and the verdict last."""
    if report.pairs:
        console.print(pairs_table(report.pairs))
    if report.layers:
        console.print(layers_table(report.layers))
    if report.golden:
        console.print(golden_table(report))
    for result in (*report.consistency, *report.pairs):
        explain(result, console)
    for line in clock_lines(report.clock):
        console.print(line, style="dim")
    console.print(
        f"[bold {_colour(report.verdict)}]{report.verdict.value}[/] (exit "
        f"{report.verdict.exit_code}): {escape(report.sentence)}"
    )


def pairs_table(results: list[PairResult]) -> Table:
    """One row a pair: cases, worst error over its limit in each type, ties, verdict."""
    kind = lambda result: result.dtype if result.device == "cpu" else f"{result.dtype}\n{result.device}"  # noqa: E731
    dtypes = list(dict.fromkeys(map(kind, results)))
    table = Table(title="Pairs, each after those that it is built from", title_justify="left", pad_edge=False)
    table.add_column("pair", no_wrap=True)
    table.add_column("cases", justify="right")
    for dtype in dtypes:
        table.add_column(f"error / limit\n{dtype}", justify="right")
    table.add_column("ties", justify="right")
    table.add_column("verdict", no_wrap=True)
    for name in dict.fromkeys(result.name for result in results):
        rows = {kind(result): result for result in results if result.name == name}
        verdict = next((row.verdict for row in rows.values() if row.verdict is not Verdict.PARITY), Verdict.PARITY)
        because = sorted({part for row in rows.values() for part in row.because})
        table.add_row(
            name,
            str(sum(row.cases for row in rows.values())),
            *(_ratio(rows[dtype].ratio) if dtype in rows else "-" for dtype in dtypes),
            _share(sum(row.ties for row in rows.values()), sum(row.decisions for row in rows.values())),
            f"[{_colour(verdict)}]{verdict.value}[/]" + (f" (contains {because[0]})" if because else ""),
        )
    return table


def layers_table(results: list[LayerResult]) -> Table:
    """Error by layer: alone against its limit, and grown along the whole model beside the reference's own growth."""
    table = Table(title="The whole model by layer", title_justify="left", pad_edge=False)
    for heading in ("model", "layer", "kind", "type"):
        table.add_column(heading, no_wrap=True)
    table.add_column("isolated\nerror / limit", justify="right")
    table.add_column("accumulated\nrelative error", justify="right")
    table.add_column("the reference's\nown in this type", justify="right")
    table.add_column("growth", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for result in results:
        peers = [
            other.accumulated_error
            for other in results
            if (other.model, other.dtype, other.device) == (result.model, result.dtype, result.device)
        ]
        table.add_row(
            result.model,
            str(result.layer),
            result.kind,
            result.dtype if result.device == "cpu" else f"{result.dtype} {result.device}",
            _ratio(result.isolated_ratio),
            f"{result.accumulated_error:.1e}",
            f"{result.accumulated_baseline:.1e}",
            _bar(result.accumulated_error, max(peers)),
            f"[{_colour(result.verdict)}]{result.verdict.value}[/]",
        )
    return table


def golden_table(report: Report) -> Table:
    """One row a recorded case: each implementation's worst error over its limit, and where that is.

    `undecided` is the largest share of tokens, over all taps, behind a rounding that no correct program can be held to.
    """
    implementations = list(dict.fromkeys(result.implementation for result in report.golden))
    table = Table(title="Recorded vectors of the official program", title_justify="left", pad_edge=False)
    table.add_column("case", no_wrap=True)
    table.add_column("type", no_wrap=True)
    table.add_column("taps", justify="right")
    for name in implementations:
        table.add_column(f"error / limit\n{name.rsplit('_', 1)[-1]}", justify="right")
    table.add_column("worst tap", no_wrap=True)
    table.add_column("undecided", justify="right")
    table.add_column("verdict", no_wrap=True)
    for case in dict.fromkeys(result.case for result in report.golden):
        rows = {result.implementation: result for result in report.golden if result.case == case}
        taps = [tap for row in rows.values() for tap in row.taps]
        worst = max(taps, key=lambda tap: tap.ratio, default=None)
        undecided = max((tap.undecided for tap in taps), default=0.0)
        verdict = next((row.verdict for row in rows.values() if row.verdict is not Verdict.PARITY), Verdict.PARITY)
        first = next(iter(rows.values()))
        table.add_row(
            case,
            first.dtype,
            str(len(first.taps)),
            *(_ratio(rows[name].ratio) for name in implementations),
            worst.name if worst else "-",
            f"{undecided:.0%}" if undecided else "-",
            f"[{_colour(verdict)}]{verdict.value}[/]",
        )
    return table


def explain(result: PairResult, console: Console) -> None:
    """What deviates in a pair, unless one of its parts already does."""
    if result.failure is None or result.because:
        return
    failure, where = result.failure, "" if result.device == "cpu" else f" on the {result.device}"
    console.print(
        f"\n[bold]{result.name}[/] in {result.dtype}{where} (spec {result.spec}, {escape(result.title)}): "
        f"{escape(failure.sentence)}."
    )
    console.print(f"  {'smallest example found' if failure.shrunk else 'example'}: {failure.schedule}")
    console.print(f"  again: {escape(failure.reproduce)}\n", soft_wrap=True)


def clock_lines(clock: dict) -> list[str]:
    """Where the time went: the parts, and the three slowest pairs."""
    parts = [
        f"{name.removesuffix('_s')} {clock[name]:.1f} s"
        for name in ("import_s", "reference_s", "layers_s")
        if name in clock
    ]
    pairs = clock.get("pairs_s") or {}
    if pairs:
        slowest = sorted(pairs, key=pairs.get, reverse=True)[:3]
        parts.insert(
            -1,
            f"pairs {sum(pairs.values()):.1f} s (slowest {', '.join(f'{name} {pairs[name]:.1f}' for name in slowest)})",
        )
    return [f"time: {', '.join(parts)}; {clock['total_s']:.1f} s in all"] if "total_s" in clock else []


def _colour(verdict: Verdict) -> str:
    return COLOURS.get(verdict, "yellow")


def _ratio(value: float) -> str:
    text = "inf" if math.isinf(value) else f"{value:.2f}" if value < 100 else f"{value:.1e}"
    return f"[red]{text}[/]" if value > 1 else text


def _share(ties: int, decisions: int) -> str:
    return f"{ties} of {decisions}" if decisions else "-"


def _bar(value: float, most: float, width: int = 12) -> str:
    return "█" * max(round(width * value / most), 1) if most > 0 and math.isfinite(value) else ""
