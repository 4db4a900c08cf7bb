"""Documents of the gate as reports' tests need them: built from the dataclasses, read back as JSON."""

import json

from parity.gate.results import (
    Candidate,
    Cell,
    Deviation,
    Diagnosis,
    Gap,
    GateReport,
    LayerError,
    Mechanism,
    Place,
    WrongLine,
)
from parity.results import Verdict

SCHEDULES = ["oneshot", "cached", "decode", "chunks", "batch"]
ROWS = [
    Mechanism("embedding", "the embedding and the output head", "3"),
    Mechanism("experts.shared", "the shared expert alone", "10.4", ["embedding"]),
    Mechanism("attention.window", "which positions of the window are seen", "6.4", ["embedding"]),
    Mechanism("attention.sink", "the sink takes mass and gives no value", "6.5", ["attention.window"]),
    Mechanism("compressor.overlap", "rows at ratio 4: which tokens, and who sees them", "7", ["attention.window"]),
    Mechanism("indexer.scores", "scores of the indexer", "8.2", ["compressor.overlap"]),
    Mechanism("hc.post", "how the streams are mixed after a part", "5.3", ["embedding"]),
    Mechanism("hc.comb", "the matrix that mixes the streams", "5.2", ["hc.post"]),
    Mechanism("model.flash", "everything at once, shaped as Flash", "2", ["hc.comb", "indexer.scores"]),
]
HOSTILE = "<script>alert('x')</script> | `rm` **b** @everyone \x1b[31m [red] \u202e \ud800 ]]> & \"quoted\" http://a.b"


def cell(mechanism, schedule, ratio=0.4, **changes):
    """A measured cell: red where its ratio is above 1."""
    null, factor, slack = 3.1e-7, 2.0, 1.74
    limit = factor * slack * null
    verdict = Verdict.DIVERGES if ratio > 1 else Verdict.PARITY
    values = {
        "sentence": f"logits differ from token 5 on: RMS error {ratio * limit:.2e}" if ratio > 1 else "",
        "tokens": 29,
        "ratio": ratio,
        "error_rms": ratio * limit,
        "error_max": 2.1 * ratio * limit,
        "limit_rms": limit,
        "limit_max": 3 * slack * 4 * null,
        "null_rms": null,
        "null_max": 4 * null,
        "floor_rms": 1.7e-8,
        "factor_rms": factor,
        "factor_max": 3.0,
        "reason": "the order of summation alone moves float32 errors",
        "first_token": 5 if ratio > 1 else None,
    }
    return Cell(mechanism, schedule, verdict, **(values | changes))


def green_cells():
    return [cell(row.name, schedule, 0.25 + 0.05 * place) for place, row in enumerate(ROWS) for schedule in SCHEDULES]


def report(**changes):
    values = {
        "candidate": Candidate(
            "mlx_lm/models/deepseek_v4.py", "mlx_lm", "mlx_lm/models/deepseek_v4.py", 412, {"mlx": "0.32.4"}
        ),
        "profile": "quick",
        "seed": 0,
        "verdict": Verdict.PARITY,
        "sentence": "45 cells agree.",
        "environment": {"python": "3.11.2", "mlx": "0.32.4", "MLX_ENABLE_TF32": "0"},
        "mechanisms": ROWS,
        "schedules": SCHEDULES,
        "cells": green_cells(),
        "reproduce": "parity gate mlx_lm/models/deepseek_v4.py --profile quick --seed 0",
        "clock": {"total_s": 41.37, "probes_s": 30.5, "diagnosis_s": 8.25, "started": "today"},
    }
    return GateReport(**(values | changes))


def layers():
    return [
        LayerError(f"layers.{layer}.{tap}", layer, f"model.layers.{layer}.{tap}" if layer != 2 else None, error, 4e-6)
        for layer in range(4)
        for tap, error in (("attn", 1e-6 * 8.0**layer), ("ffn", 2e-6))
    ]


def wrong_lines():
    """An answer of each kind."""
    file = "mlx_lm/models/deepseek_v4.py"
    mixing = [
        "        comb = self.comb(flat)",
        "",
        "        y = mx.einsum(",
        '            "btji,btjd->btid", comb, streams[:self.n:])',
        "        return y + post[..., None] * x",
    ]
    scores = ["    scores = q @ k.swapaxes(-1, -2)", "    mask = self.mask(q, k)", "    if self.sink is not None:"]
    sink = ["    if self.sink is not None:", "        scores += self.sink", "    return mx.softmax(scores) @ v"]
    return [
        WrongLine(
            "line",
            "hc.post",
            "oneshot",
            "all that it reads is right, and `y` is what D016 makes of it",
            ["D016"],
            at=Place(file, 101, 102, "HyperConnection.post", 99, mixing),
            gives="y",
            inputs_right=True,
            expected=[-1.5, 0.25, 2.0],
            got=[-1.75, 0.125, 3.5],
        ),
        WrongLine(
            "between",
            "attention.sink",
            "oneshot",
            "`scores` is the last value that is right, `return` the first that is not; no defect is named",
            at=Place(file, 215, 215, "Attention.core", 213, sink),
            after=Place(file, 211, 211, "Attention.core", 211, scores),
            gives="return",
        ),
        WrongLine("not seen", "model.flash", "oneshot", "every value that its lines give is right"),
    ]


def diverging():
    """A known defect (hc.post and what stands on it), an unknown one (sink), a crash and a gap."""
    cells = {(item.mechanism, item.schedule): item for item in green_cells()}
    for schedule in SCHEDULES:
        cells["attention.sink", schedule] = cell("attention.sink", schedule, 41.3)
        cells["indexer.scores", schedule] = cell("indexer.scores", schedule, 7.7, because=["attention.sink"])
        cells["hc.post", schedule] = cell("hc.post", schedule, 15200.0, explained_by=["D016"])
        cells["hc.comb", schedule] = cell("hc.comb", schedule, 230.0, explained_by=["D016"])
        cells["model.flash", schedule] = cell("model.flash", schedule, 812.0, because=["attention.sink"])
        if schedule != "oneshot":
            cells["embedding", schedule].left_out = 3
    cells["compressor.overlap", "chunks"] = Cell(
        "compressor.overlap", "chunks", Verdict.CRASHED, "ValueError: cannot reshape (43,) into (10, 4)"
    )
    cells["indexer.scores", "decode"] = Cell(
        "indexer.scores",
        "decode",
        Verdict.DIVERGES,
        "gave logits of shape (1, 1, 64) where (1, 43, 64) was asked for",
        tokens=43,
        ratio=float("inf"),
    )
    del cells["indexer.scores", "oneshot"]
    for row in ROWS:
        cells[row.name, "batch"] = Cell(row.name, "batch", Verdict.COVERAGE_GAP, "takes one row at a time")
    return report(
        verdict=Verdict.DIVERGES,
        sentence="attention.sink deviates first; 18 of 44 cells are red.",
        cells=list(cells.values()),
        first_deviation=Deviation("attention.sink", "oneshot", "logits differ from token 5 on: RMS error 4.46e-05"),
        diagnosis=[
            Diagnosis(
                ["D016"],
                ["hc_post mixing by comb where it should mix by its transpose"],
                "This port behaves exactly like the reference with hc_post mixing by comb where it should mix by its "
                "transpose.",
                ["y[t, i] = sum_j comb[t, j, i] * streams[t, j] + post[t, i] * x[t]"],
                ["a public port of April 2026"],
                8,
                18,
            ),
            Diagnosis([], [], "No known defect reproduces attention.sink.", explained=0, red=18),
        ],
        gaps=[
            Gap("batch", "the candidate takes one row at a time"),
            Gap("mtp", "the candidate has no MTP layer", True),
        ],
        notes=["The shared expert is clamped, as in the current revision."],
        layers=layers(),
        lines=wrong_lines(),
    )


def crashed():
    cells = [Cell(row.name, s, Verdict.CRASHED, "segfaulted (signal SIGSEGV)") for row in ROWS for s in SCHEDULES]
    return report(verdict=Verdict.CRASHED, sentence="the candidate segfaulted (signal SIGSEGV).", cells=cells, clock={})


def environment():
    return report(
        candidate=Candidate("mlx_vlm.models.deepseek_v4", "mlx_vlm"),
        verdict=Verdict.ENVIRONMENT,
        sentence="the candidate needs mlx_vlm and cv2, which are not installed.",
        mechanisms=[],
        schedules=[],
        cells=[],
        clock={},
    )


def gaps():
    cells = [Cell(row.name, s, Verdict.COVERAGE_GAP, "not offered") for row in ROWS for s in SCHEDULES]
    return report(
        verdict=Verdict.COVERAGE_GAP,
        sentence="nothing could be judged.",
        cells=cells,
        gaps=[Gap(name, f"the candidate offers no {name}") for name in SCHEDULES],
    )


def hostile():
    """Every text that a candidate can choose is an attack on the page, the terminal, the table and the XML."""
    found = diverging()
    found.candidate = Candidate(HOSTILE, HOSTILE, f"{HOSTILE}.py", 3, {HOSTILE: HOSTILE})
    found.sentence = found.first_deviation.sentence = found.reproduce = HOSTILE
    found.environment = {HOSTILE: HOSTILE}
    for item in found.cells:
        item.sentence = HOSTILE
    for item in (*found.diagnosis, *found.gaps):
        item.sentence = HOSTILE
    found.diagnosis[0].formula = [HOSTILE, "```"]
    found.notes = [HOSTILE, "x" * 100_000]
    for item in found.layers:
        item.module = HOSTILE
    for item in found.lines:
        item.sentence = item.gives = HOSTILE
        for at in filter(None, (item.at, item.after)):
            at.file, at.function = f"{HOSTILE}.py", HOSTILE
            at.text = [
                HOSTILE,
                "```",
                "</code></pre></script><script>alert(1)</script>",
                "[/red] x[:key:]\n~~~",
                "y" * 999,
            ]
    return found


ALL = {
    "parity": report,
    "diverging": diverging,
    "crashed": crashed,
    "environment": environment,
    "gaps": gaps,
    "hostile": hostile,
}


def document(name):
    """The document as `json.load` gives it."""
    return json.loads(json.dumps(ALL[name]().to_dict()))
