"""The HTML page of a run over a checkpoint: error by layer as a picture, and every figure of it."""

from __future__ import annotations

from . import view
from .checkpoint_table import (
    CONTINUATION_HEADINGS,
    WEIGHT_HEADINGS,
    cells,
    continuation_rows,
    headings,
    in_numbers,
    measure_of,
    text_rows,
    weight_rows,
    who,
)
from .html import Axis, asset, policy, template

LEFT, TOP, HEIGHT, BOTTOM = 52, 14, 260, 96  # pixels of the picture
WIDTH, NARROWEST, WIDEST = 860, 20, 64  # of all stages together, of one
# What is drawn of each stage: the key in the document, whose it is, whether a dot stands alone.
SERIES = (
    ("isolated", "{who}, this stage alone", True),
    ("accumulated", "{who}, on its own path so far", False),
    ("accumulated_baseline", "{measure}, on its own path so far", False),
)


def page(document: dict) -> str:
    """The whole page; every text of the document appears as text."""
    document = view.cleaned(document)
    style = asset("page.css")
    return template("checkpoint.html.jinja").render(
        document=document,
        picture=picture(document),
        headings=[heading.replace("\n", " ") for heading in headings(document)],
        rows=[(stage, cells(stage)) for stage in document["stages"] if in_numbers(document)],
        weights=weight_rows(document["stages"]),
        weight_headings=[heading.replace("\n", " ") for heading in WEIGHT_HEADINGS],
        text=text_rows(document) if document["text"] and document["text_baseline"] else [],
        measure=measure_of(document),
        alone=any(stage["isolated"] is not None for stage in document["stages"]),
        who=who(document),
        continuations=continuation_rows(document),
        continuation_headings=[heading.replace("\n", " ") for heading in CONTINUATION_HEADINGS],
        policy=policy(style),
        style=style,
    )


def picture(document: dict) -> dict | None:
    """Relative errors of all stages on one logarithmic axis: lines for the paths, dots for each stage alone."""
    stages = [stage for stage in document["stages"] if any(stage[key] is not None for key, _, _ in SERIES)]
    values = {key: [_relative(stage[key]) for stage in stages] for key, _, _ in SERIES}
    axis = Axis.around(value for found in values.values() for value in found if value is not None)
    if axis is None:
        return None
    step = min(max(WIDTH // len(stages), NARROWEST), WIDEST)
    at = lambda value: round(TOP + HEIGHT * (1 - axis.place(value) / 100), 1)  # noqa: E731
    across = lambda index: LEFT + step * index + step // 2  # noqa: E731
    series = []
    for key, name, alone in SERIES:
        points = [(across(i), at(value)) for i, value in enumerate(values[key]) if value is not None]
        if points:  # of somebody else's port no stage is judged alone
            name = name.format(who=who(document), measure=measure_of(document))
            series.append({"key": key, "name": name, "alone": alone, "points": points})
    names = [
        {"x": across(i), "name": stage["name"], "red": stage["verdict"] != "parity"} for i, stage in enumerate(stages)
    ]
    return {
        "width": LEFT + step * len(stages) + 8,
        "height": TOP + HEIGHT + BOTTOM,
        "bottom": TOP + HEIGHT,
        "left": LEFT,
        "ticks": [(round(TOP + HEIGHT * (1 - place / 100), 1), name) for place, name in axis.ticks()],
        "series": series,
        "names": names,
    }


def _relative(distance: dict | None) -> float | None:
    return None if distance is None else view.number(distance["relative"])
