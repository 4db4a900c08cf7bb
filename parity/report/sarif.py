"""The SARIF 2.1.0 view of a gate's document: what deviates, at the line of the candidate's model class."""

from __future__ import annotations

from pathlib import Path

from . import view

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def log(document: dict, folder: Path | None = None) -> dict:
    """The SARIF log; a source below `folder` (the current one unless given) is named relative to it.

    Results are the diagnosed defects, the red mechanisms that no defect explains, and as notes the gaps. Viewers
    refuse results without a place, so for a candidate whose source is unknown they become notifications of the run.
    """
    document = view.cleaned(document)
    found = [*_defects(document), *_mechanisms(document), *_beyond(document), *_gaps(document)]
    location = _location(document, folder or Path.cwd())
    if not found and document["verdict"] != "parity":
        found = [("verdict", "the verdict as a whole", "error", document["sentence"])]
    rules = list(dict.fromkeys(rule for rule, *_ in found))
    titles = {rule: title for rule, title, *_ in found}
    run = {
        "tool": {
            "driver": {
                "name": "dsv4-parity",
                "rules": [{"id": rule, "shortDescription": {"text": titles[rule]}} for rule in rules],
            }
        },
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": document["verdict"] in ("parity", "diverges", "coverage gap")}],
        "results": [],
    }
    if location is None:
        run["invocations"][0]["toolExecutionNotifications"] = [
            {"level": level, "message": {"text": sentence}, "associatedRule": {"id": rule, "index": rules.index(rule)}}
            for rule, _, level, sentence in found
        ]
    else:
        run["results"] = [
            {
                "ruleId": rule,
                "ruleIndex": rules.index(rule),
                "level": level,
                "message": {"text": sentence},
                "locations": [location],
            }
            for rule, _, level, sentence in found
        ]
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _defects(document: dict) -> list[tuple[str, str, str, str]]:
    found = []
    for item in document["diagnosis"]:
        for name, title in zip(item["defects"], item["titles"], strict=True):
            formula = f" It should read: {'; '.join(item['formula'])}." if item["formula"] else ""
            found.append((name, title, "error", f"{item['sentence']}{formula}"))
    return found


def _mechanisms(document: dict) -> list[tuple[str, str, str, str]]:
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
        sentence = f"{row['name']} (spec {row['spec']}) under {schedules}: {red[0]['sentence']}.{follows}"
        found.append((row["name"], row["title"], "error", sentence))
    return found


def _beyond(document: dict) -> list[tuple[str, str, str, str]]:
    titles = {row["name"]: row["title"] for row in document["mechanisms"]}
    found = zip(document["beyond"], view.findings_beyond(document), strict=True)
    return [
        (one["mechanism"], titles[one["mechanism"]], "note", f"Beyond published configs: {said}") for one, said in found
    ]


def _gaps(document: dict) -> list[tuple[str, str, str, str]]:
    return [
        (f"gap.{gap['what']}", f"not judged: {gap['what']}", "error" if gap["required"] else "note", gap["sentence"])
        for gap in document["gaps"]
    ]


def _location(document: dict, folder: Path) -> dict | None:
    source, line = document["candidate"]["source"], document["candidate"]["line"]
    if source is None:
        return None
    path, folder = folder.resolve().joinpath(source).resolve(), folder.resolve()
    # A relative URI keeps its escapes: a space or a # in a file name is not part of a URI as it stands.
    uri = path.as_uri()
    if path.is_relative_to(folder):
        uri = uri.removeprefix(folder.as_uri()).lstrip("/")
    place = {"artifactLocation": {"uri": uri}}
    if line is not None:
        place["region"] = {"startLine": line}
    return {"physicalLocation": place}
