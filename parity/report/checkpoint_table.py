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
        agreement = min((choice["agreement"] for choice in stage["choices"]), default=None)
        table.add_row(
            escape(stage["name"]),
            escape(stage["kind"]),
            f"{stage['bytes'] / 1e6:.1f}",
            _number(stage["ratio"], "{:.2f}"),
            "-" if agreement is None else f"{agreement:.1%}",
            str(sum(choice["ties"] for choice in stage["choices"])) if stage["choices"] else "-",
            *(_relative(stage[path]) for path in ("isolated", "accumulated", "accumulated_baseline")),
            f"[{COLOURS.get(stage['verdict'], 'yellow')}]{stage['verdict']}[/]",
        )
    return table


def text_table(document: dict) -> Table:
    """Next tokens over the text, of dsv4_mlx and of the reference in the run's type, against the exact reference."""
    table = Table(title="Next tokens over the text, against the exact reference", title_justify="left")
    for heading in ("", "dsv4_mlx", f"the reference in {document['facts']['dtype']}"):
        table.add_column(heading, justify="left" if not heading else "right")
    both = document["text"], document["text_baseline"]
    for key, title, form in TEXT:
        table.add_row(title, *(_number(one[key], form) for one in both))
    table.add_row("perplexity", *(_number(one["perplexity_got"], "{:.3f}") for one in both))
    table.add_row("perplexity, exact", *(_number(one["perplexity_truth"], "{:.3f}") for one in both))
    return table


def _relative(distance: dict | None) -> str:
    return "-" if distance is None else _number(distance["relative"], "{:.1e}")


def _number(value: float | str, form: str) -> str:
    return value if isinstance(value, str) else form.format(value)
