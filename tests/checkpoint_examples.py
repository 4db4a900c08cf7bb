"""Documents of `parity checkpoint` as readers may meet them."""

import json

from parity.results import Verdict
from parity.streamed.results import Agreement, CheckpointReport, Distance, Stage, WeightRow

ALL = ("flash", "conversion", "stopped", "hostile")
FACTS = {"family": "F2", "layers": 43, "mtp_blocks": 1, "tokens": 256, "decoded": 8, "dtype": "bfloat16"}
HOSTILE = "<script>alert('x')</script>\x1b[2J\u202e" + "very long " * 40


def far(relative):
    return Distance(relative, 1 - relative / 2, relative)


def stage(name, index, **changes):
    given = {"isolated": far(0.01 + index / 4e3), "isolated_baseline": far(0.01)}
    given |= {"accumulated": far(0.02 * (index + 1)), "accumulated_baseline": far(0.019 * (index + 1))}
    given |= {"verdict": Verdict.PARITY, "ratio": 0.4, "bytes": 3_600_000_000}
    return Stage(name, "ratio 4", **given | changes)


def stages(layers=43):
    return [stage("embedding", 0), *(stage(f"layer {i}", i) for i in range(layers)), stage("head", layers)]


def report(verdict, sentence, found, **changes):
    text = Agreement(0.01, 0.03, 0.05, 0.98, 0.95, 5.1, 5.2)
    given = {"facts": FACTS, "text": text, "text_baseline": text, "reproduce": "parity checkpoint flash"}
    given |= {"clock": {"total_s": 2000.0, "peak_gib": 4.6}, **changes}
    plain = [
        json.loads(json.dumps(CheckpointReport("", verdict, "", stages=[one]).to_dict()))["stages"][0] for one in found
    ]
    return CheckpointReport("DeepSeek-V4-Flash-4bit", verdict, sentence, stages=plain, **given)


def conversion(said, name="layer 3"):
    found = stages(6)
    row = WeightRow("ffn.experts.*.w1", "4 bits in groups of 64", 256, 20.8, 3.1, 20.8, 41.0)
    wrong = {"verdict": Verdict.DIVERGES, "sentence": said, "ratio": 41.0, "weights": [row], "wrong": [said] * 3}
    found[4] = stage(name, 3, **wrong)
    return report(Verdict.DIVERGES, said, found, facts=FACTS | {"original": "DeepSeek-V4-Flash"}, notes=[said])


def document(name):
    """As it is read from a file."""
    made = {
        "flash": lambda: report(Verdict.PARITY, "All stages agree.", stages()),
        "conversion": lambda: conversion(
            "layers.3.ffn.experts.7.w1.weight holds the original's layers.3.ffn.experts.9.w1.weight"
        ),
        "stopped": lambda: CheckpointReport("nowhere", Verdict.BAD_INPUT, "There is no folder nowhere."),
        "hostile": lambda: conversion(HOSTILE, HOSTILE),
    }[name]()
    return json.loads(json.dumps(made.to_dict()))
