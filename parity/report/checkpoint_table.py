"""The terminal view of a run over a checkpoint."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

COLOURS = {"parity": "green", "diverges": "red", "crashed": "red"}
HEADINGS = (
    "MB",
    "error /\nlimit",
    "same\nchoices",
    "ties",
    "error\nalone",
    "on its\nown path",
    "reference\non its own",
)
TEXT = (
    ("kl", "KL divergence, mean", "{:.2e}"),
    ("kl_99", "KL divergence, 99th percentile", "{:.2e}"),
    ("kl_largest", "KL divergence, largest", "{:.2e}"),
    ("top1", "same best token", "{:.1%}"),
    ("topk", "best five in common", "{:.1%}"),
)


def show(document: dict, console: Console) -> None:
    """A row a stage, the text, what deviates, and the verdict last."""
    if document["stages"]:
        console.print(stages_table(document["stages"]))
    if document["text"]:
        console.print(text_table(document))
    for note in document["notes"]:
        console.print(f"note: {escape(note)}")
    for stage in document["stages"]:
        if stage["verdict"] != "parity":
            console.print(f"{escape(stage['name'])}: {escape(stage['sentence'])}", style="red")
    verdict = document["verdict"]
    console.print(
        f"[bold {COLOURS.get(verdict, 'yellow')}]{verdict}[/] (exit {document['exit_code']}): "
        f"{escape(document['sentence'])}"
    )


def stages_table(stages: list[dict]) -> Table:
    """Each stage: what it takes in the files, the error over its limit, choices, and the error of each path."""
    table = Table(title="Each stage alone on the reference's streams, then each on its own path", title_justify="left")
    table.add_column("stage", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    table.add_column("verdict", no_wrap=True)
    for stage in stages:
        colour = COLOURS.get(stage["verdict"], "yellow")
        *row, verdict = map(escape, cells(stage))
        table.add_row(*row, f"[{colour}]{verdict}[/]")
    return table


def text_table(document: dict) -> Table:
    """Next tokens over the text, of dsv4_mlx and of the reference in the run's type, against the exact reference."""
    table = Table(title="Next tokens over the text, against the exact reference", title_justify="left")
    for heading in ("", "dsv4_mlx", f"the reference in {document['facts']['dtype']}"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in text_rows(document):
        table.add_row(*row)
    return table


def cells(stage: dict) -> list[str]:
    """A stage's row: name, kind, what stands under HEADINGS, verdict."""
    agreement = min((choice["agreement"] for choice in stage["choices"]), default=None)
    return [
        stage["name"],
        stage["kind"],
        f"{stage['bytes'] / 1e6:.1f}",
        _number(stage["ratio"], "{:.2f}"),
        "-" if agreement is None else f"{agreement:.1%}",
        str(sum(choice["ties"] for choice in stage["choices"])) if stage["choices"] else "-",
        *(_relative(stage[path]) for path in ("isolated", "accumulated", "accumulated_baseline")),
        stage["verdict"],
    ]


def text_rows(document: dict) -> list[list[str]]:
    """What was measured, of dsv4_mlx, of the reference in the run's type."""
    both = document["text"], document["text_baseline"]
    rows = [[title, *(_number(one[key], form) for one in both)] for key, title, form in TEXT]
    rows.append(["perplexity", *(_number(one["perplexity_got"], "{:.3f}") for one in both)])
    return [*rows, ["perplexity, exact", *(_number(one["perplexity_truth"], "{:.3f}") for one in both)]]


def _relative(distance: dict | None) -> str:
    return "-" if distance is None else _number(distance["relative"], "{:.1e}")


def _number(value: float | str, form: str) -> str:
    return value if isinstance(value, str) else form.format(value)
