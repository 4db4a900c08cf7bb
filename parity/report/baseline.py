"""What moved since an earlier report of the gate."""

from __future__ import annotations

import math

import jsonschema

from ..errors import BadInput
from ..gate.results import SCHEMA
from . import view
from .document import schema

MEASURED = {"parity", "diverges"}  # verdicts of cells that have a ratio


def apply(document: dict, old_document: object) -> None:
    """Fill each cell's `drift`, ratio now over ratio before, and note verdicts that changed.

    A drift is None where one of the two was not measured.
    Raises BadInput where `old_document` is no report of the gate.
    """
    check(old_document)
    before = view.cells_by_place(old_document)
    now = view.cells_by_place(document)
    document["notes"] += [
        f"the baseline has another {what} ({_named(old_document, what)}), so drift compares unlike runs"
        for what in ("candidate", "profile", "seed")
        if _named(document, what) != _named(old_document, what)
    ]
    changes: dict[str, dict[str, list[str]]] = {}
    for place, cell in now.items():
        old = before.get(place)
        measured = old is not None and {cell["verdict"], old["verdict"]} <= MEASURED
        cell["drift"] = _drift(cell["ratio"], old["ratio"]) if measured else None
        if old is not None and old["verdict"] != cell["verdict"]:
            change = f"{old['verdict']} in the baseline, {cell['verdict']} now"
            changes.setdefault(change, {}).setdefault(cell["mechanism"], []).append(cell["schedule"])
    for mechanism, schedule in before:
        if (mechanism, schedule) not in now:
            changes.setdefault("in the baseline, not in this run", {}).setdefault(mechanism, []).append(schedule)
    for change, rows in changes.items():
        places = ", ".join(f"{mechanism} ({', '.join(schedules)})" for mechanism, schedules in rows.items())
        document["notes"].append(f"{change}: {places}")


def check(old_document: object) -> None:
    """Raise BadInput unless this is a document of the gate's schema."""
    found = old_document.get("schema") if isinstance(old_document, dict) else None
    if found != SCHEMA:
        raise BadInput(
            f"the baseline is no report of parity gate (its schema is {found!r}, not {SCHEMA!r}); give --baseline a "
            "file that parity gate wrote with --json."
        )
    try:
        jsonschema.validate(as_now(old_document), schema(SCHEMA))
    except jsonschema.ValidationError as error:
        where = "/".join(map(str, error.absolute_path)) or "its top level"
        raise BadInput(
            f"the baseline does not follow {SCHEMA} at {where}; write it again with parity gate --json."
        ) from error


def as_now(document: dict) -> dict:
    """A report with the fields that came later, which none is the worse without as a baseline."""
    rows = [{"beyond": ""} | row if isinstance(row, dict) else row for row in _listed(document, "mechanisms")]
    forms = [{"form": "plain"} | one if isinstance(one, dict) else one for one in _listed(document, "loading")]
    cells = [{"life": []} | cell if isinstance(cell, dict) else cell for cell in _listed(document, "cells")]
    return {"beyond": [], "keys": [], "lines": []} | document | {"mechanisms": rows, "loading": forms, "cells": cells}


def _listed(document: dict, name: str) -> list:
    return document[name] if isinstance(document.get(name), list) else []


def _drift(ratio: float | str, old: float | str) -> float | str:
    new, before = view.number(ratio), view.number(old)
    if new == before:
        return 1.0
    value = new / before if before else math.inf
    return float(f"{value:.6g}") if math.isfinite(value) else "inf"


def _named(document: dict, what: str) -> object:
    return document["candidate"]["name"] if what == "candidate" else document[what]
