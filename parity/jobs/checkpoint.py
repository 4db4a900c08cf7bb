"""`parity checkpoint`: dsv4_mlx against the reference on one checkpoint, or on a conversion and its original, block by
block in the memory of one (method, section 4)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from dsv4_checkpoints import CheckpointError

from ..candidates.adapters import resolve
from ..conversion.stages import Conversions
from ..errors import BadEnvironment, BadInput, stopped_by
from ..results import Verdict, plain
from ..streamed import memory
from ..streamed.ahead import Ahead
from ..streamed.ranges import HEAD, Range, conclude
from ..streamed.results import CheckpointReport
from ..streamed.source import Source
from ..streamed.stages import Stages
from ..streamed.state import State, tensor_hash
from ..whole import generate
from ..whole.port import Port
from ..whole.records import Record
from ..whole.sizes import machine, refuse_unless_it_fits

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
    layers: str | None = None,
    most: float | None = None,
) -> CheckpointReport:
    """Judge dsv4_mlx on token ids [S] in this type, by default the config's; with an `original`, of which `source` is a
    conversion, what the conversion did to it. Of a range of `layers`, "22-42", the others are passed. With `most` GiB
    the run does not start where it would take more, and ends where it comes to more. What is done is kept in the folder
    `resume`, and a run that was ended goes on there; `again` is the command that judges so. Raises BadInput,
    BadEnvironment."""
    dtype = dtype or type_of(source)
    if most is not None:
        refuse(most, *memory.needed(source, ids.numel(), original))
    stages = Conversions(original, source, ids, dtype) if original else Stages(source, ids, dtype)
    facts = {
        "family": source.reading.family.id,
        "layers": source.config.num_hidden_layers,
        "mtp_blocks": stages.depth,
        "tokens": ids.numel(),
        "ids": tensor_hash(ids),
        "decoded": stages.decoded,
        "dtype": dtype,
    }
    part = Range.read(layers, source.config.num_hidden_layers)
    if not part.whole:
        facts["part"] = str(part)
    if original:
        facts |= {"original": str(original.folder), "original_family": original.reading.family.id}
    report = CheckpointReport(str(source.folder), Verdict.INCONCLUSIVE, "", facts, environment or {})
    report.reproduce = again
    state = State(resume, facts | {"checkpoint": str(source.folder)}) if resume else None
    started, ahead, ceiling = time.monotonic(), Ahead(), memory.Ceiling(most)
    try:
        with ceiling:
            for one in filter(None, (source, original)):
                one.refuse_twins()
            _fill(report, stages, part, state, ahead, ceiling, progress)
            conclude(report)
    except CheckpointError as error:
        raise BadInput(str(error)) from error
    except KeyboardInterrupt as stop:
        if ceiling.reached:
            kept = f"what is done is kept in {resume}" if resume else "--resume DIR would have kept what was done"
            done = f"{len(report.stages)} of {len(stages.all())} stages"
            raise BadEnvironment(
                f"The run came to {memory.peak():.1f} GiB after {done}, above --memory {most:g}; it was ended, {kept}. "
                "Give more, or a smaller --count."
            ) from stop
        by = stopped_by(stop)
        report.verdict = Verdict.INTERRUPTED
        report.sentence = f"Interrupted{by} after {len(report.stages)} of {len(stages.all())} stages."
    finally:
        ahead.stop()
    report.clock["total_s"] = round(time.monotonic() - started, 2)
    report.clock["peak_gib"] = round(memory.peak(), 2)
    return report


def judge_generation(
    source: Source,
    records: list[Record],
    most_tokens: int | None,
    dtype: str | None = None,
    environment: dict | None = None,
    again: str = "",
    progress: Progress = lambda text: None,
    most: float | None = None,
) -> CheckpointReport:
    """Continue prompts with dsv4_mlx alone, whole, by mlx-lm, and hold each to its recorded continuation (at most so
    many tokens of it); prompts alone, continued by so many, to dsv4_mlx itself in one call. Raises BadInput,
    BadEnvironment."""
    dtype = dtype or type_of(source)
    recorded = bool(records[0].ids)
    facts = {"family": source.reading.family.id, "layers": source.config.num_hidden_layers, "dtype": dtype}
    facts |= {"prompts": len(records), "held_to": "recorded continuations" if recorded else "one call"}
    report = CheckpointReport(str(source.folder), Verdict.INCONCLUSIVE, "", facts, environment or {})
    report.reproduce = again
    refuse_unless_it_fits(source, "float32", most, "--generate")  # in which it may be asked what rounding explains
    outcome = _at_once(report, source, most, lambda: generate.judge(source, records, most_tokens, dtype, progress))
    if outcome is None:
        return report
    stage, found = outcome
    report.stages, report.continuations = [plain(stage)], plain(found)
    report.notes = [f"{one.name}: {said}, a tie." for one in found for said in one.ties]
    report.verdict = stage.verdict
    tokens = sum(len(one.ids) for one in found)
    report.sentence = f"dsv4_mlx {stage.sentence}."
    if stage.verdict is Verdict.PARITY:
        to = "as recorded" if recorded else "as its own logits in one call say"
        report.sentence = (
            f"dsv4_mlx continues {len(records)} prompts by {tokens} tokens {to}, in {dtype}, "
            f"{stage.choices[0].ties} of them ties."
        )
    elif stage.verdict is Verdict.DIVERGES:
        report.sentence = f"dsv4_mlx continues {report.checkpoint} otherwise. {stage.sentence}."
    return report


def judge_port(
    source: Source,
    target: str,
    ids: Tensor,
    environment: dict | None = None,
    again: str = "",
    progress: Progress = lambda text: None,
    most: float | None = None,
) -> CheckpointReport:
    """Judge somebody else's port, whole and in a process of its own that may take `most` GiB, by its logits of token
    ids [S]. Raises BadInput, BadEnvironment."""
    dtype, found = type_of(source), resolve(target)
    if found.kind == "recording":
        raise BadInput(f"{target} is a recording of what a port gave to the gate; --candidate needs the port itself.")
    port = Port(source, found, ids, dtype, most or machine())
    facts = {"family": source.reading.family.id, "layers": source.config.num_hidden_layers, "tokens": ids.numel()}
    facts |= {"ids": tensor_hash(ids), "decoded": port.decoded, "dtype": dtype, "candidate": target}
    report = CheckpointReport(str(source.folder), Verdict.INCONCLUSIVE, "", facts, environment or {})
    report.reproduce = again
    refuse_unless_it_fits(source, dtype, most, "--candidate")
    if most is not None:
        refuse(most, *memory.needed(source, ids.numel()))
    if _at_once(report, source, most, lambda: port.judge(progress) or port) is None:
        return report
    stage, report.verdict, report.notes = port.stage, port.stage.verdict, port.notes
    report.stages = [plain(one) for one in (*port.layers, stage)]
    report.text, report.text_baseline = plain(port.text), plain(port.text_baseline)
    if stage.verdict is Verdict.PARITY and dtype == "bfloat16":  # where few mistakes are larger than rounding
        report.sentence = (
            f"{target} agrees with the reference on {ids.numel()} tokens of {report.checkpoint} within what bfloat16 "
            "leaves open: nothing gross is wrong; whether something small is, `parity gate` says."
        )
    elif stage.verdict is Verdict.PARITY:
        report.sentence = (
            f"{target} computes what the reference computes from {report.checkpoint}: its logits agree on "
            f"{ids.numel()} tokens in {dtype}."
        )
    elif stage.verdict is Verdict.DIVERGES:
        report.sentence = f"{target} deviates, and `parity gate` says in what: {stage.sentence}."
    else:
        report.sentence = f"{target} could not be judged. {stage.sentence}."
    return report


def _at_once(report: CheckpointReport, source: Source, most: float | None, judge: Callable):
    """What a run of the whole model at once gives; None where it was interrupted, which the report then says."""
    started, ceiling = time.monotonic(), memory.Ceiling(most)
    try:
        with ceiling:
            source.refuse_twins()
            outcome = judge()
            ceiling.check()
        return outcome
    except CheckpointError as error:
        raise BadInput(str(error)) from error
    except KeyboardInterrupt as stop:
        if ceiling.reached:
            raise BadEnvironment(
                f"The run came to {memory.peak():.1f} GiB, above --memory {most:g}; it was ended. Give more."
            ) from stop
        by = stopped_by(stop)
        report.verdict, report.sentence = Verdict.INTERRUPTED, f"Interrupted{by} before the whole model was judged."
        return None
    finally:
        report.clock["total_s"] = round(time.monotonic() - started, 2)
        report.clock["peak_gib"] = round(memory.peak(), 2)


def type_of(source: Source) -> str:
    """The type of a run that names none: the config's."""
    return "float32" if source.raw.get("torch_dtype") == "float32" else "bfloat16"


def refuse(most: float, need: float, stage: str) -> None:
    """Raise BadInput where a run needs more memory than it may have, GiB."""
    if need > most:
        raise BadInput(
            f"This run needs about {need:.1f} GiB, most of it for {stage}, which is above --memory {most:g}; "
            "give more, or a smaller --count."
        )


def _fill(
    report: CheckpointReport,
    stages: Stages,
    part: Range,
    state: State | None,
    ahead: Ahead,
    ceiling: memory.Ceiling,
    progress: Progress,
) -> None:
    """Every stage of a part, in order, the streams of those before it; of what an earlier run has done, its results."""
    whole, before, began, done = stages.all(), None, time.monotonic(), 0
    every = [one for one in whole if not part.ends_before(one[0])]
    judges = lambda name: part.judges(name) or len(whole) == 1  # noqa: E731 # what nothing can load is no part's alone
    sizes = [sum(size for *_, size in stages.ranges(prefix)) for _, prefix, _ in every]
    for index, (name, _, judge) in enumerate(every):
        kept = state.result(name) if state else None
        if kept is None:
            if state and before is not None and not stages.streams:
                stages.streams = state.streams(before)
            speed = done / (time.monotonic() - began)  # bytes a second, all work included
            left = f" at {speed / 1e6:.1f} MB/s, {sum(sizes[index:]) / speed:.0f} s left" if done else ""
            progress(f"{index + 1} of {len(every)}: {name}, {sizes[index] / 1e6:.1f} MB{left}")
            ahead.stop()
            ahead.start(stages.ranges(every[index + 1][1]) if index + 1 < len(every) else [])
            stage = judge(judges(name))
            stage.bytes = sizes[index]
            kept = {
                "stage": plain(stage) if judges(name) else None,
                "text": plain(stages.text),
                "text_baseline": plain(stages.text_baseline),
            }
            done += sizes[index]
            if state:
                state.save(name, kept, stages.streams, before)
            ceiling.check()
        if kept["stage"]:
            report.stages.append(kept["stage"])
        if name == HEAD:
            report.text, report.text_baseline = kept["text"], kept["text_baseline"]
        before = name
