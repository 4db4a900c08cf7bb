"""The table "released ports, judged": one row a report of the gate. `python -m parity.report.released FOLDER OUT.md`"""

from __future__ import annotations

import sys
from pathlib import Path

from . import document, view
from .markdown import text


def table(reports: list[tuple[str, dict]]) -> str:
    """Markdown of (name, document of the gate), in the order given."""
    lines = [
        "| port | verdict | first deviation | named | line | red cells | beyond published configs | not judged |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, report in reports:
        first = report["first_deviation"]
        named = [
            f"{defect}: {title}"
            for d in report["diagnosis"]
            for defect, title in zip(d["defects"], d["titles"], strict=True)
        ]
        unexplained = [d["sentence"] for d in report["diagnosis"] if not d["defects"]]
        cells = [cell for cell in report["cells"] if cell["mechanism"] not in view.beyond(report)]
        red = [cell for cell in cells if cell["verdict"] == "diverges"]
        crashed = sorted({cell["mechanism"] for cell in cells if cell["verdict"] == "crashed"})
        gaps = [gap["what"] for gap in report["gaps"]] + [f"{mechanism} (raises)" for mechanism in crashed]
        columns = (
            name,
            report["verdict"],
            f"{first['mechanism']}, {first['schedule']}" if first else "none",
            "; ".join(text(entry) for entry in [*named, *unexplained]) or "nothing",
            "; ".join(_line(one) for one in report.get("lines", [])) or "none",
            f"{len(red)} of {len(cells)}",
            ", ".join(f"{one['mechanism']} ({', '.join(one['defects']) or 'unexplained'})" for one in report["beyond"])
            or "nothing",
            ", ".join(gaps) or "nothing",
        )
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def _line(found: dict) -> str:
    """What was found of one deviation in the port's own code: its files are named without the folders above."""
    place = lambda one: f"{Path(one['file']).name}:{one['line']}"  # noqa: E731
    what = ", ".join(found["defects"]) or found["mechanism"]
    where = " and ".join(place(one) for one in (found["after"], found["at"]) if one is not None)
    return text(f"{what}: {found['kind']} {where}".rstrip())


def _name_and_version(path: Path) -> tuple[str, list[int]]:
    name, _, version = path.stem.rpartition("-")
    return name, [int(number) for number in version.split(".")]


def main(folder: str, target: str) -> None:
    """Write the table of all reports in a folder, by port and then from the oldest release on."""
    paths = sorted(Path(folder).glob("*.json"), key=_name_and_version)
    reports = [
        (path.stem.rpartition("-")[0] + " " + path.stem.rpartition("-")[2], document.read(str(path))) for path in paths
    ]
    document.write_text("# Released ports, judged\n\nWritten by `nox -s released`.\n\n" + table(reports), target)


if __name__ == "__main__":
    main(*sys.argv[1:])
