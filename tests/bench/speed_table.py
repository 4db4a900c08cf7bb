"""Cost against context as a table and as a hand-written SVG: no plotting library for one figure."""

from __future__ import annotations

import math
from html import escape

COLOURS = {"dsv4_mlx": "#0b6e4f", "mlx-vlm": "#c44536", "transformers": "#2f4b7c"}
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 360, 64, 36, 150, 48


def table(rows: list[dict]) -> str:
    """One line a measurement, in Markdown: port, dtype, what, context, figure."""
    lines = ["| port | dtype | measured | tokens | wall | of its CPU time | memory |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        if "problem" in row:
            lines.append("| {port} | {dtype} | does not run: {problem} | | | | |".format(**row))
        else:
            lines.append("| {port} | {dtype} | {measured} | {tokens} | {wall} | {cpu} | {memory} |".format(**row))
    return "\n".join(lines)


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
