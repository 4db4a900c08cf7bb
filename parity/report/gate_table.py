"""The terminal view of a gate's document."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from . import keys, view

COLOURS = {"parity": "green", "diverges": "red", "crashed": "red", "device": "red"}
MARK = 7  # columns of a cell's symbol and number
WIDE = 110  # columns from which a mechanism's title fits beside its name


def show(report_document: dict, console: Console) -> None:
    """Who was judged, the diagnosis, the matrix, what comes first, gaps, the command, the time; the verdict last."""
    document = view.cleaned(report_document)
    colour = COLOURS.get(document["verdict"], "yellow")
    candidate = document["candidate"]
    console.print(f"\n[bold]{escape(candidate['name'])}[/]: [bold {colour}]{document['verdict']}[/]")
    if view.place(document):
        console.print(f"[dim]{escape(view.place(document))}[/]", soft_wrap=True)
    diagnosis(document, console)
    wrong_lines(document, console)
    if document["cells"]:
        console.print(matrix(document, console.width))
        for state in view.states_shown(document):
            console.print(f"  [{state.colour}]{state.symbol}[/] {state.meaning}", style="dim")
        console.print("  numbers are error / limit; above 1 is not rounding\n", style="dim")
    first_deviation(document, console)
    for sentence in keys.sentences(document):
        console.print(f"[bold]which keys were seen:[/] {escape(sentence)}\n")
    for finding in view.findings_beyond(document):
        console.print(f"[yellow]beyond published configs:[/] {escape(finding)}")
    if view.loading(document):
        console.print(f"loading: {escape(' · '.join(view.loading(document)))}")
    for gap in document["gaps"]:
        required = " [red](required)[/]" if gap["required"] else ""
        console.print(f"[yellow]not judged:[/] {escape(gap['what'])}: {escape(gap['sentence'])}{required}")
    for note in document["notes"]:
        console.print(f"note: {escape(note)}")
    if document["reproduce"]:
        console.print(f"again: {escape(document['reproduce'])}", soft_wrap=True)
    times = view.clock(document)
    if times:
        console.print(f"time: {', '.join(f'{escape(name)} {seconds:.1f} s' for name, seconds in times)}", style="dim")
    console.print(
        f"[bold {colour}]{document['verdict']}[/] (exit {document['exit_code']}): {escape(document['sentence'])}"
    )


def diagnosis(document: dict, console: Console) -> None:
    """Each diagnosis: the sentence, the line as it should read, where it was seen, how much it explains."""
    for item in document["diagnosis"]:
        console.print(f"\n[bold]{escape(item['sentence'])}[/]")
        for line in item["formula"]:
            if line not in item["sentence"]:
                console.print(f"  it should read: [cyan]{escape(line)}[/]")
        for seen in item["seen"]:
            console.print(f"  seen in: {escape(seen)}")
        if item["defects"]:
            names = escape(", ".join(item["defects"]))
            console.print(f"  {names} reproduces {item['explained']} of {item['red']} red cells")
    console.print()


def wrong_lines(document: dict, console: Console) -> None:
    """Where the candidate's own code goes wrong: the place, its code, the sentence."""
    for shown in view.wrong_lines(document):
        # Text, not markup: in code [x] is no colour and :key: no picture. Unwrapped: half a place opens nothing.
        console.print(Text.assemble("in its own code: ", (shown["of"], "bold")), soft_wrap=True)
        for at in shown["places"]:
            console.print(Text(f"  {view.headed(at)}"), soft_wrap=True)
            colour = COLOURS["parity" if at["word"] == "after" else "diverges"]
            for (_, _, own), line in zip(at["rows"], view.listing(at["rows"]), strict=True):
                console.print(Text(f"    {line}", colour if own else "dim"), soft_wrap=True)
        console.print(Text(f"  {shown['sentence']}"))
        for name, numbers in shown["numbers"]:
            console.print(Text(f"  {name}: {numbers}", "dim"))
        console.print()


def matrix(document: dict, width: int) -> Table:
    """One row a mechanism in dependency order, one column a schedule."""
    cells = view.cells_by_place(document)
    drifting = view.has_drift(document)
    table = Table(title="Mechanisms, each after those that its probe needs", title_justify="left", pad_edge=False)
    table.add_column("mechanism", no_wrap=True)
    if width >= WIDE:
        names = max((len(row["name"]) for row in document["mechanisms"]), default=0)
        left = width - names - (MARK + 3) * (len(document["schedules"]) + drifting) - 6
        table.add_column("what", no_wrap=True, overflow="ellipsis", max_width=max(left, 10))
    for schedule in document["schedules"]:
        table.add_column(escape(schedule), no_wrap=True, min_width=MARK if width >= WIDE else None)
    if drifting:
        table.add_column("drift", no_wrap=True)
    for row in document["mechanisms"]:
        marks = [_mark(document, cells.get((row["name"], schedule))) for schedule in document["schedules"]]
        table.add_row(
            escape(row["name"]),
            *([escape(row["title"])] if width >= WIDE else []),
            *marks,
            *([view.row_drift(document, row["name"])] if drifting else []),
        )
    return table


def first_deviation(document: dict, console: Console) -> None:
    """The cell to look at first, with its tolerance in words."""
    first = document["first_deviation"]
    if first is None:
        return
    row = next((row for row in document["mechanisms"] if row["name"] == first["mechanism"]), None)
    about = f" (spec {row['spec']}, {row['title']})" if row else ""
    console.print(
        f"[bold]{escape(first['mechanism'])}[/] under [bold]{escape(first['schedule'])}[/]{escape(about)}: "
        f"{escape(first['sentence'])}"
    )
    cell = view.cells_by_place(document).get((first["mechanism"], first["schedule"]))
    for line in view.explanation(cell) if cell else []:
        console.print(f"  {escape(line)}")
    for line in view.life(cell) if cell else []:
        console.print(f"    {escape(line)}", soft_wrap=True, style="cyan")
    console.print()


def _mark(document: dict, cell: dict | None) -> str:
    return f"[{view.state(document, cell).colour}]{escape(view.mark(document, cell))}[/]"
