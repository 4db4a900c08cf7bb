"""A run over a checkpoint for machines that read no JSON of ours: JUnit, one test case a stage, and Markdown."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement

from . import view
from .checkpoint_table import (
    CONTINUATION_HEADINGS,
    WEIGHT_HEADINGS,
    cells,
    continuation_rows,
    headings,
    measure_of,
    text_rows,
    weight_rows,
    who,
)
from .junit import closed
from .markdown import fenced, listed, text

CHILDREN = {"diverges": "failure", "crashed": "error"}


def junit(document: dict) -> str:
    """The document as JUnit XML. Where no stage tells why the verdict is not parity, one more case does."""
    document = view.cleaned(document)
    suite = Element("testsuite", name=f"parity checkpoint {document['checkpoint']}")
    for stage in document["stages"]:
        case = SubElement(suite, "testcase", classname="parity.checkpoint", name=stage["name"])
        child = CHILDREN.get(stage["verdict"])
        if child:
            SubElement(case, child, message=stage["sentence"], type=stage["verdict"]).text = _details(document, stage)
    if document["verdict"] != "parity" and not any(len(case) for case in suite):
        case = SubElement(suite, "testcase", classname="parity", name="verdict")
        SubElement(case, "error", message=document["sentence"], type=document["verdict"])
    return closed(suite, document["clock"].get("total_s", 0))


def markdown(document: dict) -> str:
    """Verdict, a row a stage, the text, as GitHub's Markdown."""
    document = view.cleaned(document)
    blocks = [
        f"## {text(document['checkpoint'])}: {text(document['verdict'])} (exit {document['exit_code']})",
        text(document["sentence"]),
    ]
    if document["stages"]:
        titles = [heading.replace("\n", " ") for heading in headings(document)]
        heads = ["stage", "kind", *titles, "verdict"]
        sides = [":---", ":---", *["---:"] * len(titles), ":---"]
        blocks.append(
            "\n".join(map(_row, [heads, sides, *([*map(text, cells(stage))] for stage in document["stages"])]))
        )
    wrong = [text(f"{stage['name']}: {said}") for stage in document["stages"] for said in stage["wrong"]]
    blocks += listed("What rounding does not explain", wrong)
    if rows := weight_rows(document["stages"]):
        heads = ["matrices", "stored as", *(heading.replace("\n", " ") for heading in WEIGHT_HEADINGS)]
        sides = [":---", ":---", *["---:"] * len(WEIGHT_HEADINGS)]
        blocks.append("\n".join(map(_row, [heads, sides, *([*map(text, row)] for row in rows)])))
    if document["text"]:
        heads = ["next tokens", text(who(document)), measure_of(document)]
        rows = [[*map(text, row)] for row in text_rows(document)]
        blocks.append("\n".join(map(_row, [heads, [":---", "---:", "---:"], *rows])))
    if document["continuations"]:
        heads = ["prompt", "continued with", *(heading.replace("\n", " ") for heading in CONTINUATION_HEADINGS)]
        sides = [":---", ":---", *["---:"] * len(CONTINUATION_HEADINGS)]
        blocks.append("\n".join(map(_row, [heads, sides, *([*map(text, row)] for row in continuation_rows(document))])))
    blocks += listed("Notes", [text(note) for note in document["notes"]])
    if document["reproduce"]:
        blocks += ["**Again**", fenced(document["reproduce"])]
    return "\n\n".join(blocks) + "\n"


def _details(document: dict, stage: dict) -> str:
    again = [f"again: {document['reproduce']}"] if document["reproduce"] else []
    return "\n".join([f"{stage['name']} ({stage['kind']}): {stage['sentence']}", *stage["wrong"], *again])


def _row(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"
