"""The SARIF 2.1.0 view of a gate's document: what deviates, at the line that is wrong, else at the model class."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from ..gate.results import KINDS_OF_LINE
from . import view

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


class Found(NamedTuple):
    """One result, and where in the candidate's own code it comes from, as in the document's `lines`."""

    rule: str
    title: str
    level: str
    sentence: str
    line: dict | None = None


def log(document: dict, folder: Path | None = None) -> dict:
    """The SARIF log; a source below `folder` (the current one unless given) is named relative to it.

    Results are the diagnosed defects, the red mechanisms that no defect explains, and as notes the gaps. Viewers
    refuse results without a place, so what is known neither by line nor by class becomes a notification of the run.
    """
    document = view.cleaned(document)
    found = [*_defects(document), *_mechanisms(document), *_beyond(document), *_gaps(document)]
    folder = (folder or Path.cwd()).resolve()
    if not found and document["verdict"] != "parity":
        found = [Found("verdict", "the verdict as a whole", "error", document["sentence"])]
    rules = list(dict.fromkeys(one.rule for one in found))
    titles = {one.rule: one.title for one in found}
    run = {
        "tool": {
            "driver": {
                "name": "dsv4-parity",
                "rules": [{"id": rule, "shortDescription": {"text": titles[rule]}} for rule in rules],
            }
        },
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {"executionSuccessful": document["verdict"] in ("parity", "diverges", "coverage gap", "device")}
        ],
        "results": [],
    }
    for one in found:
        index, message = rules.index(one.rule), {"text": one.sentence}
        place = _region(one.line, folder) or _class(document["candidate"], folder)
        if place is None:
            run["invocations"][0].setdefault("toolExecutionNotifications", []).append(
                {"level": one.level, "message": message, "associatedRule": {"id": one.rule, "index": index}}
            )
            continue
        result = {"ruleId": one.rule, "ruleIndex": index, "level": one.level, "message": message}
        result["locations"] = [{"physicalLocation": place}]
        if one.line and one.line["at"]:
            result["partialFingerprints"] = {"primaryLocationLineHash": _fingerprint(one.rule, one.line["at"])}
        run["results"].append(result)
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _defects(document: dict) -> list[Found]:
    found = []
    for item in document["diagnosis"]:
        for name, title in zip(item["defects"], item["titles"], strict=True):
            formula = f" It should read: {'; '.join(item['formula'])}." if item["formula"] else ""
            line = _nearest([one for one in document.get("lines", ()) if name in one["defects"]])
            found.append(Found(name, title, "error", f"{item['sentence']}{formula}{_said(line)}", line))
    return found


def _mechanisms(document: dict) -> list[Found]:
    """Red mechanisms with a cell that no diagnosed defect explains, or that crashed."""
    found = []
    for row in document["mechanisms"]:
        cells = [cell for cell in document["cells"] if cell["mechanism"] == row["name"] and not row["beyond"]]
        red = [c for c in cells if c["verdict"] == "crashed" or (c["verdict"] == "diverges" and not c["explained_by"])]
        if not red:
            continue
        schedules = ", ".join(cell["schedule"] for cell in red)
        because = sorted({name for cell in red for name in cell["because"]})
        follows = f" It may only follow from {', '.join(because)}." if because else ""
        own = [one for one in document.get("lines", ()) if one["mechanism"] == row["name"] and not one["defects"]]
        line = _nearest(own)
        sentence = f"{row['name']} (spec {row['spec']}) under {schedules}: {red[0]['sentence']}.{follows}{_said(line)}"
        found.append(Found(row["name"], row["title"], "error", sentence, line))
    return found


def _beyond(document: dict) -> list[Found]:
    titles = {row["name"]: row["title"] for row in document["mechanisms"]}
    found = zip(document["beyond"], view.findings_beyond(document), strict=True)
    return [
        Found(one["mechanism"], titles[one["mechanism"]], "note", f"Beyond published configs: {said}")
        for one, said in found
    ]


def _gaps(document: dict) -> list[Found]:
    return [
        Found(f"gap.{gap['what']}", f"not judged: {gap['what']}", _level(gap), gap["sentence"])
        for gap in document["gaps"]
    ]


def _level(gap: dict) -> str:
    return "error" if gap["required"] else "note"


def _nearest(lines: list[dict]) -> dict | None:
    """The answer that says most: a line, then a likely one, then between two, then none."""
    return min(lines, key=lambda one: KINDS_OF_LINE.index(one["kind"]), default=None)


def _said(line: dict | None) -> str:
    return f" In its own code: {line['sentence'].rstrip('.')}." if line else ""


def _region(line: dict | None, folder: Path) -> dict | None:
    """The statement, or all from the last right value's to it; with the text where all its lines are known."""
    at = line["at"] if line and line["kind"] != "not seen" else None
    if at is None:
        return None
    after, start = line["after"] if line["kind"] == "between" else None, at["line"]
    if after and after["file"] == at["file"] and after["line"] <= at["line"]:
        start = after["line"]
    known = {
        number: text for place in filter(None, (after, at)) for number, text in enumerate(place["text"], place["first"])
    }
    region = {"startLine": start, "endLine": max(at["end"], start)}
    lines = range(start, region["endLine"] + 1)
    if all(number in known for number in lines):
        region["snippet"] = {"text": "\n".join(known[number] for number in lines)}
    return {"artifactLocation": {"uri": _uri(at["file"], folder)}, "region": region}


def _class(candidate: dict, folder: Path) -> dict | None:
    """The model class, where it is known."""
    if candidate["source"] is None:
        return None
    place = {"artifactLocation": {"uri": _uri(candidate["source"], folder)}}
    return place if candidate["line"] is None else place | {"region": {"startLine": candidate["line"]}}


def _uri(file: str, folder: Path) -> str:
    path = folder.joinpath(file).resolve()
    # A relative URI keeps its escapes: a space or a # in a file name is not part of a URI as it stands.
    uri = path.as_uri()
    return uri.removeprefix(folder.as_uri()).lstrip("/") if path.is_relative_to(folder) else uri


def _fingerprint(rule: str, at: dict) -> str:
    """The same wherever the statement moves within its function, however it is indented."""
    own = [text for number, text in enumerate(at["text"], at["first"]) if at["line"] <= number <= at["end"]]
    words = " ".join(" ".join(own).split())
    return f"{hashlib.sha256(repr((rule, at['function'], words)).encode()).hexdigest()[:16]}:1"
