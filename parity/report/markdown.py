"""The Markdown view of a gate's document, for the job summary of a continuous integration run."""

from __future__ import annotations

import re

from . import keys, view

SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")


def summary(document: dict) -> str:
    """Verdict, diagnosis, matrix, gaps and the command that shows it again, as GitHub's Markdown."""
    document = view.cleaned(document)
    blocks = [
        f"## {text(document['candidate']['name'])}: {text(document['verdict'])} (exit {document['exit_code']})",
        text(document["sentence"]),
        *diagnosis(document),
        *wrong_lines(document),
        *[f"Which keys were seen: {text(sentence)}" for sentence in keys.sentences(document)],
        *matrix(document),
        *listed("Not judged", [_gap(gap) for gap in document["gaps"]]),
        *listed("Beyond published configs", [text(finding) for finding in view.findings_beyond(document)]),
        *listed("Loading", [text(one) for one in view.loading(document)]),
        *listed("Notes", [text(note) for note in document["notes"]]),
    ]
    if document["reproduce"]:
        blocks += ["**Again**", fenced(document["reproduce"])]
    facts = [f"profile {document['profile']}", f"seed {document['seed']}", view.place(document)]
    blocks.append(f"<sub>{' · '.join(text(fact) for fact in facts if fact)}</sub>")
    return "\n\n".join(blocks) + "\n"


def diagnosis(document: dict) -> list[str]:
    """One quoted block for each diagnosis, and the first deviation."""
    blocks = []
    for item in document["diagnosis"]:
        lines = [f"**{text(item['sentence'])}**"]
        if item["defects"]:
            lines.append(
                f"reproduces {item['explained']} of {item['red']} red cells "
                f"({', '.join(text(name) for name in item['defects'])})"
            )
        lines += [f"seen in {text(seen)}" for seen in item["seen"]]
        blocks.append("> " + "  \n> ".join(lines))
        if item["formula"]:
            blocks += ["It should read", fenced("\n".join(item["formula"]))]
    first = document["first_deviation"]
    if first:
        blocks.append(
            f"First deviation: **{text(first['mechanism'])}** under **{text(first['schedule'])}**: "
            f"{text(first['sentence'])}"
        )
        cell = view.cells_by_place(document).get((first["mechanism"], first["schedule"]))
        if cell and view.life(cell):
            blocks += ["The shortest life that was found", fenced("\n".join(view.life(cell)))]
    return blocks


def wrong_lines(document: dict) -> list[str]:
    """Where the candidate's own code goes wrong: the sentence, each place and its code, numbers."""
    blocks = []
    for shown in view.wrong_lines(document):
        blocks.append(f"In its own code, **{text(shown['of'])}**: {text(shown['sentence'])}")
        for at in shown["places"]:
            blocks += [text(view.headed(at)), fenced("\n".join(view.listing(at["rows"])))]
        if shown["numbers"]:
            blocks.append("  \n".join(f"{text(name)}: {text(numbers)}" for name, numbers in shown["numbers"]))
    return blocks


def matrix(document: dict) -> list[str]:
    """The matrix as a table, and the legend of its symbols; nothing where nothing was judged."""
    if not document["cells"]:
        return []
    cells = view.cells_by_place(document)
    drifting = view.has_drift(document)
    heads = ["mechanism", *map(text, document["schedules"]), *(["drift"] if drifting else [])]
    lines = [_row(heads), _row([":---", *[":---:"] * (len(heads) - 1)])]
    for row in document["mechanisms"]:
        shown = [_mark(document, cells.get((row["name"], schedule))) for schedule in document["schedules"]]
        moved = [view.row_drift(document, row["name"])] if drifting else []
        lines.append(_row([text(row["name"]), *shown, *moved]))
    legend = " · ".join(f"{state.symbol} {state.meaning}" for state in view.states_shown(document))
    return ["\n".join(lines), f"<sub>{legend}. Numbers are error / limit.</sub>"]


def listed(heading: str, items: list[str]) -> list[str]:
    """A heading and a list, or nothing."""
    return [f"**{heading}**", "\n".join(f"- {item}" for item in items)] if items else []


def text(value: str) -> str:
    """Text that renders as itself on one line: no markup, no HTML, no mention, no link."""
    escaped = SPECIAL.sub(r"\\\1", " ".join(value.split()))
    # A backslash keeps GitHub neither from linking addresses nor from mentioning people; a character reference does.
    for character, reference in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "&#64;"), ("://", "&#58;//")):
        escaped = escaped.replace(character, reference)
    return escaped.replace("www.", "www&#46;")


def fenced(code: str) -> str:
    """A code block whose fence is longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{code}\n{fence}"


def _row(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"


def _mark(document: dict, cell: dict | None) -> str:
    shown = view.mark(document, cell)
    return f"**{shown}**" if view.state(document, cell).red else shown


def _gap(gap: dict) -> str:
    return f"{text(gap['what'])}: {text(gap['sentence'])}" + (" (required)" if gap["required"] else "")
