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
WEIGHT_HEADINGS = ("count", "lowest", "highest", "honest\nrounding", "error /\nlimit", "worst in")
SQNR = (min, "sqnr_lowest"), (max, "sqnr"), (min, "sqnr_honest")
CONTINUATION_HEADINGS = ("tokens", "ties", "wrong", "least\nmargin")
SHOWN = 60  # characters of a prompt, of a continuation
TEXT = (
    ("kl", "KL divergence, mean", "{:.2e}"),
    ("kl_99", "KL divergence, 99th percentile", "{:.2e}"),
    ("kl_largest", "KL divergence, largest", "{:.2e}"),
    ("top1", "same best token", "{:.1%}"),
    ("topk", "best five in common", "{:.1%}"),
)


def show(document: dict, console: Console) -> None:
    """A row a stage, the text, what deviates, and the verdict last."""
    if document["stages"] and in_numbers(document):
        console.print(stages_table(document))
    if weight_rows(document["stages"]):
        console.print(weights_table(document["stages"]))
    if document["text"]:
        console.print(text_table(document))
    if document["continuations"]:
        console.print(continuations_table(document))
    for note in document["notes"]:
        console.print(f"note: {escape(note)}")
    for stage in document["stages"]:
        if stage["verdict"] != "parity":
            console.print(f"{escape(stage['name'])}: {escape(stage['sentence'])}", style="red")
            for said in stage["wrong"][1:]:
                console.print(f"  {escape(said)}", style="red")
    verdict = document["verdict"]
    console.print(
        f"[bold {COLOURS.get(verdict, 'yellow')}]{verdict}[/] (exit {document['exit_code']}): "
        f"{escape(document['sentence'])}"
    )


def in_numbers(document: dict) -> bool:
    """Whether the stages are numbers of a model; a run of continuations has a table of its own."""
    return "held_to" not in document["facts"]


def who(document: dict) -> str:
    """Whose model was judged."""
    return document["facts"].get("candidate", "dsv4_mlx")


def stages_table(document: dict) -> Table:
    """Each stage: what it takes in the files, the error over its limit, choices, and the error of each path."""
    title = "Each stage alone on the reference's streams, then each on its own path"
    if "candidate" in document["facts"]:
        title = f"{escape(who(document))}, whole: its layers on its own path, and its logits"
    table = Table(title=title, title_justify="left")
    table.add_column("stage", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    stages = document["stages"]
    for heading in headings(document):
        table.add_column(heading, justify="right")
    table.add_column("verdict", no_wrap=True)
    for stage in stages:
        colour = COLOURS.get(stage["verdict"], "yellow")
        *row, verdict = map(escape, cells(stage))
        table.add_row(*row, f"[{colour}]{verdict}[/]")
    return table


def weights_table(stages: list[dict]) -> Table:
    """The kinds of matrices of all stages: in how many formats, their signal to quantisation noise, and the worst."""
    table = Table(title="Weights: signal to quantisation noise against the original, in dB", title_justify="left")
    table.add_column("matrices", no_wrap=True)
    table.add_column("stored as")
    for heading in WEIGHT_HEADINGS:
        table.add_column(heading, justify="right")
    for row in weight_rows(stages):
        table.add_row(*map(escape, row))
    return table


def weight_rows(stages: list[dict]) -> list[list[str]]:
    """A row a kind and format: count, lowest and highest SQNR, honest rounding's lowest, worst ratio and its stage; but
    for kinds that are the original's, bit for bit."""
    kinds: dict[tuple[str, str], list[tuple[dict, str]]] = {}
    for stage in stages:
        for row in stage["weights"]:
            kinds.setdefault((row["what"], row["stored"]), []).append((row, stage["name"]))
    return [
        [
            what,
            stored,
            str(sum(row["count"] for row, _ in found)),
            *(_number(pick(map(float, (row[key] for row, _ in found))), "{:.1f}") for pick, key in SQNR),
            _number(max(float(row["ratio"]) for row, _ in found), "{:.2f}"),
            max(found, key=lambda one: float(one[0]["ratio"]))[1],
        ]
        for (what, stored), found in kinds.items()
        if any(row["sqnr_lowest"] != "inf" for row, _ in found)
    ]


def headings(document: dict) -> tuple[str, ...]:
    """HEADINGS, the last of which says whose the measure is."""
    return (*HEADINGS[:-1], "rounding\non its own" if "original" in document["facts"] else HEADINGS[-1])


def measure_of(document: dict) -> str:
    """What dsv4_mlx is held to: the reference in the run's type, of a conversion with honestly rounded weights."""
    facts = document["facts"]
    return "honest rounding" if "original" in facts else f"the reference in {facts.get('dtype', 'its type')}"


def text_table(document: dict) -> Table:
    """Next tokens over the text, of the model and of the reference in the run's type, against the exact reference."""
    table = Table(title="Next tokens over the text, against the exact reference", title_justify="left")
    for heading in ("", escape(who(document)), measure_of(document)):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in text_rows(document):
        table.add_row(*row)
    return table


def continuations_table(document: dict) -> Table:
    """Each prompt, what it was continued with, and how near the nearest choice was."""
    table = Table(title="Greedy continuations by dsv4_mlx", title_justify="left")
    table.add_column("prompt")
    table.add_column("continued with")
    for heading in CONTINUATION_HEADINGS:
        table.add_column(heading, justify="right")
    for row in continuation_rows(document):
        table.add_row(*map(escape, row))
    return table


def continuation_rows(document: dict) -> list[list[str]]:
    """A row a prompt: its words, or name and ids; the continuation's; what stands under CONTINUATION_HEADINGS."""
    return [
        [
            _short(f"{one['name']}: {one['prompt'] or _listed(one['prompt_ids'])}"),
            _short(one["text"] or _listed(one["ids"])),
            *(str(len(one[key])) for key in ("ids", "ties", "wrong")),
            _number(min(one["margins"], key=float), "{:.2g}"),
        ]
        for one in document["continuations"]
    ]


def _listed(ids: list[int]) -> str:
    return " ".join(map(str, ids[:SHOWN]))


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def cells(stage: dict) -> list[str]:
    """A stage's row: name, kind, what stands under HEADINGS, verdict."""
    agreement = min((choice["agreement"] for choice in stage["choices"]), default=None)
    return [
        stage["name"],
        stage["kind"],
        f"{stage['bytes'] / 1e6:.1f}" if stage["bytes"] else "-",
        _number(stage["ratio"], "{:.2f}" if float(stage["ratio"]) < 1000 else "{:.1e}"),
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
