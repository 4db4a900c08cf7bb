"""The HTML page of a gate's document: one file, no network, light and dark, drill-down to every cell."""

from __future__ import annotations

import base64
import hashlib
import math
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from . import keys, view

PERCENT = 100
WORDS = {"crashed": "crash", "coverage gap": "gap", "inconclusive": "unclear"}  # for cells without a ratio


def page(document: dict) -> str:
    """The whole page; every text of the document appears as text."""
    document = view.cleaned(document)
    style, script = asset("page.css"), asset("page.js")
    return template("page.html.jinja").render(
        document=document,
        rows=rows(document),
        states=view.states_shown(document),
        counts=view.counts(document),
        layers=layers(document),
        pictures=keys.pictures(document),
        place=view.place(document),
        wrong_lines=view.wrong_lines(document),
        loading=view.loading(document),
        beyond=view.findings_beyond(document),
        clock=view.clock(document),
        schedules=view.SCHEDULES,
        drifting=view.has_drift(document),
        policy=policy(style, script),
        style=style,
        script=script,
    )


def rows(document: dict) -> list[dict]:
    """The matrix by rows: each mechanism with its cells in the schedules' order, ready to be shown."""
    cells = view.cells_by_place(document)
    titles = {
        name: title
        for item in document["diagnosis"]
        for name, title in zip(item["defects"], item["titles"], strict=False)
    }
    first = document["first_deviation"] or {"mechanism": None, "schedule": None}
    found = []
    for place, row in enumerate(document["mechanisms"]):
        shown = []
        for column, schedule in enumerate(document["schedules"]):
            cell = cells.get((row["name"], schedule))
            measured = cell is not None and cell["verdict"] in ("parity", "diverges")
            shown.append(
                {
                    "id": f"cell-{place}-{column}",
                    "schedule": schedule,
                    "state": view.state(document, cell),
                    "cell": cell,
                    "is_first": cell is not None and (row["name"], schedule) == (first["mechanism"], first["schedule"]),
                    "ratio": view.ratio(cell["ratio"]) if measured else "",
                    "word": WORDS.get(cell["verdict"], "") if cell else "",
                    "defects": [(name, titles.get(name, "")) for name in cell["explained_by"]] if cell else [],
                    "tolerances": view.tolerances(cell) if cell else [],
                    "explanation": view.explanation(cell) if cell else [],
                    "life": view.life(cell) if cell else [],
                    "drift": view.drift(cell["drift"]) if cell and cell["drift"] is not None else "",
                    "scale": scale(cell) if cell else None,
                }
            )
        found.append({"mechanism": row, "cells": shown, "drift": view.row_drift(document, row["name"])})
    return found


def scale(cell: dict) -> dict | None:
    """A cell's RMS error, limit, null and floor on one logarithmic axis, in percent of its width."""
    names = ("error", "limit", "null", "floor")
    values = {name: view.number(cell[f"{name}_rms"]) for name in names}
    axis = Axis.around(values.values())
    if axis is None or not values["limit"]:
        return None
    marks = {name: axis.place(value) for name, value in values.items() if value > 0}
    return {"marks": marks, "words": {name: view.short(values[name]) for name in marks}, "over": _over(values)}


def layers(document: dict) -> dict | None:
    """Error by layer as bars on one logarithmic axis; nothing where no module was tapped."""
    found = [item for item in document["layers"] if item["module"] is not None]
    axis = Axis.around(view.number(item[key]) for item in found for key in ("error", "limit"))
    if axis is None:
        return None
    bars = []
    for item in document["layers"]:
        error, limit = view.number(item["error"]), view.number(item["limit"])
        bars.append(
            {
                "item": item,
                "error": view.short(error),
                "limit": view.short(limit),
                "bar": axis.place(error),
                "mark": axis.place(limit),
                "over": _over({"error": error, "limit": limit}),
            }
        )
    return {"bars": bars, "ticks": axis.ticks()}


class Axis:
    """A logarithmic axis over whole decades, places in percent."""

    def __init__(self, low: int, high: int):
        self.low, self.high = low, high

    @classmethod
    def around(cls, values) -> Axis | None:
        """The decades that hold all positive finite values; None where there are none."""
        logs = [math.log10(value) for value in values if 0 < value < math.inf]
        # A little room on the left, so that the smallest value still has a bar.
        return cls(math.floor(min(logs) - 0.2), math.ceil(max(logs) + 0.01)) if logs else None

    def place(self, value: float) -> float:
        """0 for zero, 100 for infinity."""
        if value <= 0 or math.isinf(value):
            return 0.0 if value <= 0 else float(PERCENT)
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(PERCENT * min(max(share, 0.0), 1.0), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """At most six decades with their names."""
        step = max(1, math.ceil((self.high - self.low) / 5))
        return [(self.place(10.0**decade), f"1e{decade}") for decade in range(self.low, self.high + 1, step)]


def _over(values: dict[str, float]) -> bool:
    return values["error"] > values["limit"]


@cache
def template(name: str):
    """A page's template."""
    # The page's policy names its style and its script by their digests, so neither may be changed on the way.
    loader = PackageLoader("parity", "report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"short": view.short, "ratio": view.ratio, "words": view.words}
    return environment.get_template(name)


@cache
def asset(name: str) -> str:
    """What a page holds besides its template: style, script."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def policy(style: str, script: str | None = None) -> str:
    """What a page may do: show itself in this style, run this script or none, fetch and send nothing."""
    runs = f"script-src '{_digest(script)}'; " if script is not None else ""
    return f"default-src 'none'; style-src '{_digest(style)}'; {runs}base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
