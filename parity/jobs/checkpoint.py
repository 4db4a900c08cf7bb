"""`parity checkpoint`: dsv4_mlx against the reference on one checkpoint, or on a conversion and its original, block by
block in the memory of one (method, section 4)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from dsv4_checkpoints import CheckpointError

from ..conversion.stages import Conversions
from ..errors import BadInput
from ..results import Verdict, overall, plain
from ..streamed.ahead import Ahead
from ..streamed.results import CheckpointReport
from ..streamed.source import Source
from ..streamed.stages import HEAD, Stages
from ..streamed.state import State, tensor_hash

Progress = Callable[[str], None]


def judge_checkpoint(
    source: Source,
    ids: Tensor,
    dtype: str | None = None,
    resume: Path | None = None,
    environment: dict | None = None,
    again: str = "",
    progress: Progress = lambda text: None,
    original: Source | None = None,
) -> CheckpointReport:
    """Judge dsv4_mlx on token ids [S] in this type, by default the config's; with an `original`, of which `source` is a
    conversion, what the conversion did to it. What is done is kept in the folder `resume`, and a run that was ended
    goes on there; `again` is the command that judges so. Raises BadInput."""
    dtype = dtype or ("float32" if source.raw.get("torch_dtype") == "float32" else "bfloat16")
    stages = Conversions(original, source, ids, dtype) if original else Stages(source, ids, dtype)
    facts = {
        "family": source.reading.family.id,
        "layers": source.config.num_hidden_layers,
        "mtp_blocks": source.config.num_nextn_predict_layers,
        "tokens": ids.numel(),
        "decoded": stages.decoded,
        "dtype": dtype,
    }
    if original:
        facts |= {"original": str(original.folder), "original_family": original.reading.family.id}
    report = CheckpointReport(str(source.folder), Verdict.INCONCLUSIVE, "", facts, environment or {})
    report.reproduce = again
    state = State(resume, facts | {"checkpoint": str(source.folder), "ids": tensor_hash(ids)}) if resume else None
    started, ahead = time.monotonic(), Ahead()
    try:
        for one in (source, original):
            if one:
                one.refuse_twins()
        _fill(report, stages, state, ahead, progress)
        _conclude(report)
    except CheckpointError as error:
        raise BadInput(str(error)) from error
    except KeyboardInterrupt as stop:
        by = f" by {stop}" if str(stop) else ""
        report.verdict = Verdict.INTERRUPTED
        report.sentence = f"Interrupted{by} after {len(report.stages)} of {len(stages.all())} stages."
    finally:
        ahead.stop()
    report.clock["total_s"] = round(time.monotonic() - started, 2)
    return report


def _fill(report: CheckpointReport, stages: Stages, state: State | None, ahead: Ahead, progress: Progress) -> None:
    """Every stage in order; of those that an earlier run has done, its results."""
    every, before, began, done = stages.all(), None, time.monotonic(), 0
    for index, (name, prefix, judge) in enumerate(every):
        kept = state.result(name) if state else None
        if kept is None:
            if state and before is not None and not stages.streams:
                stages.streams = state.streams(before)
            rest = len(every) - index
            left = f", {(time.monotonic() - began) / done * rest:.0f} s left" if done else ""
            progress(f"{index + 1} of {len(every)}: {name}{left}")
            ahead.stop()
            ahead.start(stages.ranges(every[index + 1][1]) if index + 1 < len(every) else [])
            stage = judge()
            stage.bytes = sum(size for *_, size in stages.ranges(prefix))
            kept = {"stage": plain(stage), "text": plain(stages.text), "text_baseline": plain(stages.text_baseline)}
            done += 1
            if state:
                state.save(name, kept, stages.streams, before)
        report.stages.append(kept["stage"])
        if name == HEAD:
            report.text, report.text_baseline = kept["text"], kept["text_baseline"]
        before = name


def _conclude(report: CheckpointReport) -> None:
    """The verdict of all stages, and the first that deviates in a sentence."""
    report.verdict = overall([Verdict(stage["verdict"]) for stage in report.stages])
    facts = report.facts
    original, count = facts.get("original"), len(report.stages)
    if report.verdict is Verdict.PARITY:
        on = f"{facts['tokens']} tokens in {facts['dtype']}"
        same = (
            f"{report.checkpoint} is {original}, honestly rounded: in all {count} stages rounding explains every tensor"
        )
        report.sentence = (
            f"{same} and what dsv4_mlx makes of {on}."
            if original
            else f"dsv4_mlx computes what the reference computes from {report.checkpoint}: all {count} stages agree on "
            f"{on}."
        )
        return
    bad = next(stage for stage in report.stages if stage["verdict"] == report.verdict.value)
    does = "fails" if report.verdict is Verdict.CRASHED else "deviates"
    who = "the conversion" if original and report.verdict is not Verdict.CRASHED else "dsv4_mlx"
    report.sentence = f"{bad['name']} ({bad['kind']}) is where {who} {does} first: {bad['sentence']}."
