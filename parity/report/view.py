"""What all renderings of a gate's document share: each cell's state and symbol, numbers and tolerances in words."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..gate.results import where

# Control characters (which move a terminal's cursor and are not XML), direction overrides and lone surrogates.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
LONGEST = 2000  # characters of one text; a candidate may name its class by a novel
SLACK_CAP = 5.0  # slack is 1 + 4/sqrt(rows): a limit further above factor x null than this is the floor

SCHEDULES = {
    "oneshot": "all tokens in one call, without a cache",
    "cached": "all tokens in one call, with a cache",
    "decode": "a prompt, then token by token",
    "chunks": "several calls of uneven length",
    "batch": "two rows at once, a prompt, then token by token",
    "lives": "random lives of the caches, and requests through mlx-lm itself",
    "gpu": "the worst of all schedules and lives on the GPU, within limits for its own errors",
}


@dataclass(frozen=True)
class State:
    """How a cell looks in every rendering; the symbol carries it where there is no colour."""

    name: str
    symbol: str
    meaning: str
    colour: str
    red: bool = False


SHORT, WIDE = 24, 200  # lines of a life or of code, and characters of one, that are shown; the document has all


def life(cell: dict) -> list[str]:
    """The shortest broken life of a cell's caches, as lines of mlx-lm calls; long ones are cut."""
    lines = [_cut(line) for line in cell.get("life", ())]
    return lines if len(lines) <= SHORT else [f"... {len(lines) - SHORT} lines before", *lines[-SHORT:]]


def _cut(line: str) -> str:
    return line if len(line) <= WIDE else f"{line[:WIDE]} ..."


STATES = {
    state.name: state
    for state in (
        State("parity", "✓", "agrees within the limit", "green"),
        State("first", "✖", "the first deviation: look here", "bold white on red", red=True),
        State("diverges", "✗", "deviates", "red", red=True),
        State("beyond", "○", "deviates, and no published checkpoint needs it", "yellow"),
        State("explained", "≡", "deviates exactly as a known defect does", "magenta", red=True),
        State("follows", "↳", "deviates, and may only follow from a mechanism above", "dim red", red=True),
        State("crashed", "!", "the candidate raised, hung or died", "bold red"),
        State("gap", "–", "not judged", "yellow"),
        State("unclear", "?", "could not be judged", "yellow"),
        State("absent", "·", "not part of this run", "dim"),
    )
}
PLAIN_STATES = {"parity": "parity", "crashed": "crashed", "coverage gap": "gap", "inconclusive": "unclear"}


def cleaned(value):
    """A copy of a document with texts that are safe on a terminal and in XML: no control characters, bounded length."""
    if isinstance(value, str):
        text = UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", value)
        return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text) - LONGEST} characters more)"
    if isinstance(value, dict):
        return {cleaned(key): cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return value


def cells_by_place(document: dict) -> dict[tuple[str, str], dict]:
    """Cells by (mechanism, schedule)."""
    return {(cell["mechanism"], cell["schedule"]): cell for cell in document["cells"]}


def state(document: dict, cell: dict | None) -> State:
    """How a cell is shown; None is a place of the matrix that has no cell."""
    if cell is None:
        return STATES["absent"]
    if cell["verdict"] in ("diverges", "crashed") and cell["mechanism"] in beyond(document):
        return STATES["beyond"]
    if cell["verdict"] != "diverges":
        return STATES[PLAIN_STATES[cell["verdict"]]]
    first = document["first_deviation"]
    if first and (first["mechanism"], first["schedule"]) == (cell["mechanism"], cell["schedule"]):
        return STATES["first"]
    return STATES["explained" if cell["explained_by"] else "follows" if cell["because"] else "diverges"]


def beyond(document: dict) -> dict[str, str]:
    """Mechanisms that do not count, and why no published checkpoint needs them."""
    return {row["name"]: row["beyond"] for row in document["mechanisms"] if row["beyond"]}


def findings_beyond(document: dict) -> list[str]:
    """What deviates beyond published configs, a sentence each."""
    return [
        f"{one['mechanism']} ({', '.join(one['schedules'])}), though {one['why']}: "
        + (
            "; ".join(f"{title} ({name})" for name, title in zip(one["defects"], one["titles"], strict=True))
            or one["sentence"]
        )
        for one in document["beyond"]
    ]


def loading(document: dict) -> list[str]:
    """What it did with each checkpoint that was tried, `F1 packed: loads`; empty where it took all of them."""
    tried = [one for one in document["loading"] if one["state"] != "not tried"]
    if all(one["state"] == "loads" for one in tried):
        return []
    return [f"{one['family']} {one['form']}: {one['state']}" for one in tried]


def states_shown(document: dict) -> list[State]:
    """The states that occur in the matrix, in the legend's order."""
    cells = cells_by_place(document)
    places = [(row["name"], schedule) for row in document["mechanisms"] for schedule in document["schedules"]]
    shown = {state(document, cells.get(place)).name for place in places}
    return [item for item in STATES.values() if item.name in shown]


def number(value: float | str) -> float:
    """A number of the document, where "inf" stands for an infinite one."""
    return float(value)


def short(value: float | str) -> str:
    """An error or a limit: 0, 3.4e-07, 0.12, inf."""
    x = number(value)
    return f"{x:.2g}" if x == 0 or 0.01 <= x < 100 or math.isinf(x) else f"{x:.1e}"


def ratio(value: float | str) -> str:
    """Error over limit, as the table of `parity run` shows it."""
    x = number(value)
    return (
        "inf" if math.isinf(x) else f"{x:.2f}" if x < 10 else f"{x:.0f}" if x < 1000 else f"{x:.1e}".replace("e+0", "e")
    )


def mark(document: dict, cell: dict | None) -> str:
    """A cell in a few characters: its symbol, and its ratio where it was measured."""
    shown = state(document, cell)
    measured = cell is not None and cell["verdict"] in ("parity", "diverges")
    return f"{shown.symbol} {ratio(cell['ratio'])}" if measured else shown.symbol


def drift(value: float | str | None) -> str:
    """Ratio now over ratio before, in words."""
    if value is None:
        return "new"
    x = number(value)
    return "same" if 0.995 <= x <= 1.005 else f"×{ratio(x)}"


def has_drift(document: dict) -> bool:
    """Whether a baseline was given and shares cells with this document."""
    return any(cell["drift"] is not None for cell in document["cells"])


def row_drift(document: dict, mechanism: str) -> str:
    """The drift of the row's cell that moved most; empty for a row without cells."""
    drifts = [cell["drift"] for cell in document["cells"] if cell["mechanism"] == mechanism]
    known = [value for value in drifts if value is not None]
    return drift(max(known, key=_distance)) if known else "new" if drifts else ""


def _distance(value: float | str) -> float:
    x = number(value)
    return abs(math.log(x)) if 0 < x < math.inf else math.inf


@dataclass(frozen=True)
class Tolerance:
    """One of a cell's two errors beside the limit it is held to. slack: None where the floor decides."""

    quantity: str
    error: float
    limit: float
    null: float
    factor: float
    slack: float | None

    @property
    def over(self) -> float:
        return 0.0 if self.error == 0 else self.error / self.limit if self.limit else math.inf

    @property
    def formula(self) -> str:
        """Where the limit comes from, in numbers."""
        if self.slack is None:
            return f"limit = floor = {short(self.limit)}"
        return (
            f"limit = factor {self.factor:g} × slack {self.slack:.2f} × null {short(self.null)} = {short(self.limit)}"
        )


def tolerances(cell: dict) -> list[Tolerance]:
    """The RMS and the largest error of a cell against their limits; nothing where none was measured."""
    if not number(cell["limit_rms"]) and not number(cell["limit_max"]):
        return []
    return [_tolerance(cell, "rms", "RMS error"), _tolerance(cell, "max", "largest error")]


def _tolerance(cell: dict, key: str, quantity: str) -> Tolerance:
    error, limit, null, factor = (number(cell[f"{name}_{key}"]) for name in ("error", "limit", "null", "factor"))
    explained = factor * null
    # The document holds no slack: it is what lies between factor x null and the limit, unless that is the floor.
    slack = limit / explained if explained and math.isfinite(limit) else None
    if slack is not None and (slack > SLACK_CAP or (key == "rms" and limit <= number(cell["floor_rms"]))):
        slack = None
    return Tolerance(quantity, error, limit, null, factor, slack)


def explanation(cell: dict) -> list[str]:
    """The tolerance of a cell in sentences."""
    measured = tolerances(cell)
    if not measured:
        return []
    worst = max(measured, key=lambda tolerance: tolerance.over)
    side = "above" if worst.over > 1 else "within"
    lines = [
        f"The {worst.quantity} is {short(worst.error)}, {ratio(worst.over)} times its limit of {short(worst.limit)}: "
        f"{side} what rounding explains."
    ]
    if worst.slack is None:
        lines.append("The limit is the floor: one rounding to the output's own type, which no program can avoid.")
    else:
        lines.append(
            f"The limit is {worst.factor:g} (factor) × {worst.slack:.2f} (slack for a sample of {cell['tokens']} "
            f"tokens) × {short(worst.null)} (null: how far the reference itself strays from exact when only the "
            "order of its sums changes)."
        )
    if cell["reason"]:
        lines.append(f"Why this factor: {cell['reason']}.")
    return lines


def place(document: dict) -> str:
    """Where the candidate's class stands: `file:line`, `file`, or nothing."""
    source, line = document["candidate"]["source"], document["candidate"]["line"]
    return "" if source is None else f"{source}:{line}" if line is not None else source


def wrong_lines(document: dict) -> list[dict]:
    """Where the candidate's own code goes wrong, ready to be shown; documents from before `lines` have none."""
    return [_wrong_line(one) for one in document.get("lines", ())]


def _wrong_line(one: dict) -> dict:
    word = {"between": "at", "likely": "likely"}.get(one["kind"], "")
    places = [("after", one["after"])] * (one["kind"] == "between") + [(word, one["at"])] * (one["kind"] != "not seen")
    about = f" ({', '.join(one['defects'])})" if one["defects"] else ""
    numbers = [("expected", one["expected"]), ("got", one["got"])] if one["expected"] and one["got"] else []
    return {
        "cell": (one["mechanism"], one["schedule"]),
        "of": f"{one['mechanism']} under {one['schedule']}{about}",
        "sentence": one["sentence"],
        "places": [
            {"word": word, "where": where(at["file"], at["line"]), "function": at["function"], "rows": source(at)}
            for word, at in places
            if at is not None
        ],
        "numbers": [
            (f"{name} {one['gives']}".strip(), ", ".join(f"{number(x):.4g}" for x in some)) for name, some in numbers
        ],
    }


def source(at: dict) -> list[tuple[int, str, bool]]:
    """The lines around a statement: number, text, whether it is the statement's own; long ones are cut."""
    lines = [_cut(line.replace("\n", "\\n")) for line in at["text"][:SHORT]]
    return [(number, line, at["line"] <= number <= at["end"]) for number, line in enumerate(lines, at["first"])]


def listing(rows: list[tuple[int, str, bool]]) -> list[str]:
    """The same as text, the statement's own lines marked."""
    wide = max((len(str(number)) for number, _, _ in rows), default=0)
    return [f"{'>' if own else ' '} {number:>{wide}} | {text}".rstrip() for number, text, own in rows]


def headed(at: dict) -> str:
    """`after file:line in function`; the name of the place stays one word."""
    return f"{at['word']} {at['where']} in {at['function']}".strip()


def in_a_line(shown: dict) -> str:
    """An answer without the code."""
    return ": ".join(filter(None, [", ".join(map(headed, shown["places"])), shown["sentence"]]))


def counts(document: dict) -> str:
    """How many cells ended how: `112 parity, 8 diverges`."""
    verdicts = [cell["verdict"] for cell in document["cells"]]
    return ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(sorted(verdicts, key=_order)))


def _order(verdict: str) -> int:
    return ["parity", "diverges", "crashed", "coverage gap", "inconclusive"].index(verdict)


def words(value: object) -> str:
    """A value of the environment: `mlx 0.32.4, torch 2.13.0` for a table of names, a list's items, or the value."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {words(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(words, value))
    return str(value)


def clock(document: dict) -> list[tuple[str, float]]:
    """(name, seconds) for each time of the clock, the total last."""
    times = {
        key.removesuffix("_s").replace("_", " "): value
        for key, value in document["clock"].items()
        if key.endswith("_s") and isinstance(value, (int, float))
    }
    return sorted(times.items(), key=lambda item: item[0] == "total")
