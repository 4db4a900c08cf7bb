"""What the speed benchmark measured, as tables for docs/performance.md and as SVGs, by hand: it is one kind of figure.

python tests/bench/speed_table.py FOLDER PAGE puts the tables of FOLDER/speed.json into PAGE, between its two marks.
"""

from __future__ import annotations

import json
import math
import sys
from html import escape
from pathlib import Path

OURS = "dsv4_mlx"
COLOURS = {
    OURS: "#0b6e4f",
    "mlx-vlm": "#c44536",
    "transformers": "#2f4b7c",
    "rapid-mlx": "#b07d12",
    "mtplx": "#7a3b8f",
    "jang": "#4a4a4a",
}
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 360, 64, 36, 170, 48
MARKS = "<!-- measured: nox -s bench -->", "<!-- end of what was measured -->"
MIB = 1 << 20


def tables(rows: list[dict]) -> str:
    """Tokens a second of each port in Markdown, a table for each dtype and what was measured; in the last column how
    many times the best peer's dsv4_mlx gives, those with another BLAS among themselves."""
    found = [one for one in rows if "problem" not in one]
    parts = []
    for dtype in dict.fromkeys(one["dtype"] for one in found):
        for measured in ("decode", "prefill"):
            if some := [one for one in found if (one["dtype"], one["measured"]) == (dtype, measured)]:
                parts += [f"**{measured.capitalize()}, {dtype}**, tokens a second ({_bytes(measured)})", _table(some)]
    gone = {(one["port"], one["dtype"], one["problem"]) for one in rows if "problem" in one}
    parts += [f"{port} does not run in {dtype}: {problem}" for port, dtype, problem in sorted(gone)]
    return "\n\n".join(parts)


def _bytes(measured: str) -> str:
    return "cache, bytes a token of context" if measured == "decode" else "peak of memory, MiB"


def _table(rows: list[dict]) -> str:
    ports = list(dict.fromkeys(one["port"] for one in rows))
    rate = {(one["tokens"], one["port"]): 1e3 / one["wall_ms"] for one in rows}
    held = {(one["tokens"], one["port"]): one for one in rows}
    lines = ["| tokens | " + " | ".join(ports) + " | times the best peer |", "|---" * (len(ports) + 2) + "|"]
    for tokens in sorted({one["tokens"] for one in rows}):
        cells = []
        for port in ports:
            one = held.get((tokens, port))
            size = one and (one["bytes"] / tokens if one["measured"] == "decode" else one["bytes"] / MIB)
            cells.append(f"{rate[tokens, port]:.1f} ({size:.0f})" if one else "")
        lines.append(f"| {tokens} | {' | '.join(cells)} | {_ratios(tokens, rate)} |")
    return "\n".join(lines)


def _ratios(tokens: int, rate: dict[tuple[int, str], float]) -> str:
    """dsv4_mlx against the best peer with the same BLAS; torch has its own, which both meet."""
    said = []
    for ours in (port for at, port in rate if at == tokens and port.startswith(OURS)):
        blas = ours.removeprefix(OURS)
        peers = {
            port: one
            for (at, port), one in rate.items()
            if at == tokens and not port.startswith(OURS) and (port.endswith(blas) if blas else "+" not in port)
        }
        mlx = {port: one for port, one in peers.items() if port != "transformers"}
        for some in (mlx, {"transformers": rate[tokens, "transformers"]} if (tokens, "transformers") in rate else {}):
            if some:
                best = max(some, key=some.__getitem__)
                said.append(f"{rate[tokens, ours] / some[best]:.2f} ({best}){blas and ' with' + blas[2:]}")
    return ", ".join(said)


def plots(rows: list[dict]) -> dict[str, str]:
    """File names and SVGs: ms a token of each port, one a dtype and what was measured; without another BLAS."""
    found = {}
    for dtype in dict.fromkeys(one["dtype"] for one in rows):
        for measured in ("decode", "prefill"):
            series: dict[str, dict[int, float]] = {}
            for one in rows:
                if (one["dtype"], one.get("measured")) == (dtype, measured) and "+" not in one["port"]:
                    series.setdefault(one["port"], {})[one["tokens"]] = one["wall_ms"]
            if series:
                found[f"{measured}-{dtype}.svg"] = plot(f"{measured}, {dtype}", series, "ms a token")
    return found


def plot(title: str, series: dict[str, dict[int, float]], unit: str) -> str:
    """An SVG of port -> context -> cost, both axes logarithmic to base 2."""
    contexts = sorted({context for points in series.values() for context in points})
    costs = [cost for points in series.values() for cost in points.values()]
    low, high = math.floor(math.log2(min(costs))), math.ceil(math.log2(max(costs)))
    high = max(high, low + 1)

    def x(context: float) -> float:
        span = math.log2(contexts[-1] / contexts[0]) or 1.0
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log2(context / contexts[0]) / span

    def y(cost: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log2(cost) - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for power in range(low, high + 1):
        at = y(2.0**power)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{2.0**power:g}</text>')
    for context in contexts:
        name = f"{context // 1024}k" if context >= 1024 else str(context)
        parts.append(f'<text x="{x(context):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{name}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 10}">tokens of context; {escape(unit)}</text>')
    ends: list[float] = []
    for port, points in sorted(series.items(), key=lambda item: item[1][max(item[1])]):
        colour = COLOURS.get(port, "#555")
        line = " ".join(f"{x(context):.1f},{y(cost):.1f}" for context, cost in sorted(points.items()))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for context, cost in points.items():
            parts.append(f'<circle cx="{x(context):.1f}" cy="{y(cost):.1f}" r="3" fill="{colour}"/>')
        last = max(points)
        label = min([y(points[last]) + 4, *(end - 14 for end in ends)])  # names do not cover each other
        ends.append(label)
        parts.append(f'<text x="{x(last) + 8:.1f}" y="{label:.1f}" fill="{colour}">{escape(port)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main(folder: str, page: str) -> None:
    rows = json.loads(Path(folder, "speed.json").read_text(encoding="utf-8"))
    text = Path(page).read_text(encoding="utf-8")
    (begin, end), name = MARKS, Path(folder).name
    head, _, rest = text.partition(begin)
    _, marked, tail = rest.partition(end)
    if not marked:
        sys.exit(f"{page} lacks the marks {begin} and {end}.")
    pictures = "\n".join(f"![{one.removesuffix('.svg')}]({name}/{one})" for one in plots(rows))
    Path(page).write_text(f"{head}{begin}\n\n{tables(rows)}\n\n{pictures}\n\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
