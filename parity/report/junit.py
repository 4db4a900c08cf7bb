"""The JUnit view of a gate's document: one test case a cell."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from . import view

# How each verdict of a cell reads in JUnit; parity is a test case without a child.
CHILDREN = {"diverges": "failure", "crashed": "error", "coverage gap": "skipped", "inconclusive": "skipped"}


def xml(document: dict) -> str:
    """The document as JUnit XML.

    Where no cell tells why the verdict is not parity, one more case named `verdict` does.
    """
    document = view.cleaned(document)
    suite = Element("testsuite", name=f"parity gate {document['candidate']['name']}")
    beyond = view.beyond(document)
    for cell in document["cells"]:
        child = (
            "skipped" if cell["mechanism"] in beyond and cell["verdict"] in CHILDREN else CHILDREN.get(cell["verdict"])
        )
        case = SubElement(suite, "testcase", classname=f"parity.{cell['mechanism']}", name=cell["schedule"])
        if child:
            detail = SubElement(case, child, message=cell["sentence"], type=cell["verdict"])
            detail.text = "\n".join(details(document, cell))
    for gap in document["gaps"]:
        if gap["required"]:
            case = SubElement(suite, "testcase", classname="parity.required", name=gap["what"])
            SubElement(case, "failure", message=gap["sentence"], type="coverage gap")
    if document["verdict"] != "parity" and not suite.findall("testcase/failure") + suite.findall("testcase/error"):
        case = SubElement(suite, "testcase", classname="parity", name="verdict")
        SubElement(case, "error", message=document["sentence"], type=document["verdict"])
    return closed(suite, dict(view.clock(document)).get("total", 0))


def closed(suite: Element, seconds: float) -> str:
    """A suite with its totals, as a whole document."""
    totals = {
        "tests": str(len(suite)),
        "failures": str(len(suite.findall("testcase/failure"))),
        "errors": str(len(suite.findall("testcase/error"))),
        "skipped": str(len(suite.findall("testcase/skipped"))),
        "time": f"{seconds:.3f}",
    }
    suite.attrib.update(totals)
    suites = Element("testsuites", {"name": suite.attrib["name"]} | totals)
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=False) + "\n"


def details(document: dict, cell: dict) -> list[str]:
    """What a reader of a red test case wants to know: why it may be red, how the limit came about, how to see it."""
    lines = [cell["sentence"]]
    if cell["mechanism"] in view.beyond(document):
        lines.append(f"does not count: {view.beyond(document)[cell['mechanism']]}")
    if cell["explained_by"]:
        lines.append(f"behaves exactly like the reference with {', '.join(cell['explained_by'])}")
    if cell["because"]:
        lines.append(f"may only follow from {', '.join(cell['because'])}")
    for shown in view.wrong_lines(document):
        if shown["cell"] == (cell["mechanism"], cell["schedule"]):
            lines.append(f"in its own code: {view.in_a_line(shown)}")
            lines += [line for at in shown["places"] for line in view.listing(at["rows"])]
    lines += view.explanation(cell)
    if document["reproduce"]:
        lines.append(f"again: {document['reproduce']}")
    return lines
