"""Somebody else's port, whole and in a process of its own, held at its end to the streamed reference's logits.

The limit is that of `judging/tolerance.py` for the logits at the end of the model: its null are whole paths of the
reference in the run's type, each of which chooses its own experts and rows.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..candidates.adapters import Target
from ..candidates.adapters.problems import CandidateProblem, LacksName, NeedsDevice, NotOffered
from ..candidates.process import MissingImports, Process
from ..errors import BadEnvironment
from ..judging import oracle
from ..judging.rounding import OtherBlocks
from ..judging.runs import DECIDED, clear_choices
from ..judging.tolerance import Measurement, measure
from ..results import Verdict
from ..streamed import memory, reference
from ..streamed.measure import agreement, distance
from ..streamed.results import Agreement, Stage
from ..streamed.source import Source
from ..streamed.stages import DECODED, DTYPES, block_stage, diverges, measured
from .layers import LayerTruth, stages_of

PORT = "port"
SECONDS, SECONDS_A_GB = 60, 90  # of processor time a request; dsv4_mlx on one slow thread takes 9 s a GB with 64 tokens
Progress = Callable[[str], None]


class Port:
    """One run on token ids [S]. `stage` is what came of it, `notes` what was not judged; `text` and `text_baseline`
    are those of a run by blocks."""

    def __init__(self, source: Source, target: Target, ids: Tensor, dtype: str, room: float):
        """`room` is how many GiB the port may take."""
        self.source, self.target, self.ids, self.dtype, self.room = source, target, ids, dtype, room
        self.decoded = min(DECODED, len(ids) // 2)
        self.notes: list[str] = []
        self.layers: list[Stage] = []  # those that its modules give; they explain
        self.outputs: list[tuple[str, np.ndarray]] | None = None  # what its modules return, where they can be heard
        self.stage = Stage(PORT, "whole, its logits", Verdict.PARITY)
        self.stage.bytes = sum(size for *_, size in source.ranges(""))
        self.text: Agreement | None = None
        self.text_baseline: Agreement | None = None

    def judge(self, progress: Progress) -> None:
        """Ask the port, then the reference, of which nothing is in memory before. Raises BadEnvironment."""
        try:
            given = self._given(progress)
        except MissingImports as problem:
            self._ends(Verdict.ENVIRONMENT, str(problem))
        except NotOffered as problem:
            self._ends(Verdict.COVERAGE_GAP, str(problem))
        except CandidateProblem as problem:
            known = isinstance(problem.__cause__, LacksName)  # whose own sentence names no option of the gate
            self._ends(Verdict.CRASHED, str(problem.__cause__ if known else problem))
        else:
            truth = reference_truth(self.source, self.ids, self.dtype, progress)
            self._measure(given, truth)
            self._look_inside(truth)

    def _ends(self, verdict: Verdict, sentence: str) -> None:
        self.stage.verdict, self.stage.sentence = verdict, sentence.rstrip(".")

    def _given(self, progress: Progress) -> dict[str, Tensor]:
        """Logits by the way in which the tokens came. Raises CandidateProblem."""
        seconds, found = SECONDS + SECONDS_A_GB * self.stage.bytes / 1e9, {}
        with tempfile.TemporaryDirectory(prefix="parity-", ignore_cleanup_errors=True) as scratch:
            if shutil.disk_usage(scratch).free < self.stage.bytes:
                raise BadEnvironment(
                    f"--candidate gives the port a copy of the checkpoint, {self.stage.bytes / 1e9:.1f} GB, for which "
                    f"{tempfile.gettempdir()} has no room; set TMPDIR."
                )
            progress(f"starting {self.target.text}")
            with Process(self.target, Path(scratch), seconds, self.room) as process:
                progress("loading the whole checkpoint")
                process.load(self.source.folder)
                for name, calls, cached in self._schedules():
                    progress(f"{len(self.ids)} tokens, {name}")
                    try:
                        found[name] = torch.from_numpy(process.run(name, self.ids[None].numpy(), calls, cached))
                    except NeedsDevice:
                        raise
                    except NotOffered as problem:
                        self.notes.append(f"Not judged: {name}. {problem}")
                        last = problem
                if found:
                    progress("what its modules return")
                    self._listen(process)
        if not found:
            raise last
        return found

    def _listen(self, process: Process) -> None:
        """Keep what may be a layer's streams."""
        size = len(self.ids) * self.source.config.hc_mult * self.source.config.hidden_size
        try:
            taps = process.taps(self.ids[None].numpy())
        except CandidateProblem as problem:
            self.notes.append(f"Its layers were not looked at. {problem}")
        else:
            self.outputs = [(tap["path"], tap["array"]) for tap in taps if tap["array"].size == size]

    def _look_inside(self, truth: Truth) -> None:
        """Its layers beside the reference's; where its logits agree no layer is wrong, however it computes."""
        if self.outputs is None:  # a note says why
            return
        self.layers, lost = stages_of(self.outputs, truth.layers, self.dtype, nearest)
        if lost:
            self.notes.append(f"No module of the port gives the streams of layers {', '.join(map(str, lost))}.")
        for one in self.layers:
            if self.stage.verdict is not Verdict.DIVERGES:
                one.verdict, one.sentence = Verdict.PARITY, ""
        first = next((one for one in self.layers if one.verdict is Verdict.DIVERGES), None)
        if first is not None:
            self.stage.sentence = f"{first.name} ({first.kind}) is the first that deviates; {self.stage.sentence}"

    def _schedules(self) -> list[tuple[str, list[int], bool]]:
        """Name, calls, and whether there is a cache."""
        tokens = len(self.ids)
        return [
            ("in one call", [tokens], False),
            ("token by token after a prompt", [tokens - self.decoded, *[1] * self.decoded], True),
        ]

    def _measure(self, given: dict[str, Tensor], truth: Truth) -> None:
        """Hold the logits of each way to the reference's."""
        exact, judged = truth.exact, truth.clear
        if not exact.isfinite().all():
            self._ends(Verdict.INCONCLUSIVE, "the exact reference's own logits are not finite")
            return
        taps: dict[str, Measurement] = {}
        for name, calls, _ in self._schedules():
            got, seen = given.get(name), judged if truth.enough else torch.ones_like(judged)
            if got is None:
                continue
            if got.shape == (1, len(calls), exact.shape[-1]) != exact.shape:
                ends = torch.tensor(calls).cumsum(0) - 1
                got = torch.zeros_like(exact).index_copy(1, ends, got.to(exact.dtype))
                seen = seen & torch.isin(torch.arange(len(seen)), ends)
                self.notes.append(f"Gives the logits of each call's last token alone, {name}; only these were judged.")
            elif got.shape != exact.shape:
                diverges(
                    self.stage, f"{name} it gave logits of shape {[*got.shape]} where {[*exact.shape]} was asked for"
                )
                return
            if not got.isfinite().all():
                diverges(self.stage, f"{name} it gave logits that are not finite")
                return
            if seen.any():
                parts = [tensor[:, seen] for tensor in (exact, truth.baseline, *truth.nulls, got)]
                parts = parts if truth.enough else nearest(parts)
                taps[f"logits {name}"] = measure(parts[0], parts[1], parts[2:-1], parts[-1], self.dtype)
        if left := int((~judged).sum()):
            said = "these were left out" if truth.enough else "of each run the nearer half of all tokens was held"
            self.notes.append(f"{left} of {len(judged)} tokens hang on a choice that rounding decides; {said}.")
        if not taps:
            self._ends(Verdict.INCONCLUSIVE, "no token whose logits it gave can be judged; give other --tokens")
            return
        measured(self.stage, taps)
        self.stage.accumulated_baseline = distance(exact, truth.baseline)
        whole = next((got for got in given.values() if got.shape == exact.shape), None)
        if whole is not None:
            self.stage.accumulated = distance(exact, whole)
            self.text = agreement(exact[0], whole[0], self.ids)
            self.text_baseline = agreement(exact[0], truth.baseline[0], self.ids)


@dataclass
class Truth:
    """Logits [1, S, V] at the end of whole paths of the reference, streamed block by block.

    exact, baseline in the run's type, and nulls in other rounding. clear [S]: tokens that no choice of experts or rows
    reaches which rounding decides. layers: the same after each layer.
    """

    exact: Tensor
    baseline: Tensor
    nulls: list[Tensor]
    clear: Tensor
    layers: list[LayerTruth] = field(default_factory=list)

    @property
    def enough(self) -> bool:
        """Whether clear tokens alone can be judged."""
        return bool(self.clear.sum() >= DECIDED * len(self.clear))


def nearest(runs: list[Tensor]) -> list[Tensor]:
    """Of runs [1, S, V], the first of them exact, each one's half of the tokens that is nearest to exact, as errors of
    the same exact tokens: another choice moves a few tokens far, in each run others, and all of them a little."""
    exact, *others = runs
    half = max((exact.shape[1] + 1) // 2, 1)
    kept = exact[:, :half]
    errors = [run.to(exact.dtype) - exact for run in others]
    near = [one[:, one.square().mean(-1)[0].argsort()[:half]] for one in errors]
    return [kept, *((kept + error).to(run.dtype) for error, run in zip(near, others, strict=True))]


def reference_truth(source: Source, ids: Tensor, dtype: str, progress: Progress) -> Truth:
    """The reference's logits of ids [S] to hold a port of this type to."""
    own, wide = DTYPES[dtype], torch.float64 if dtype == "float32" else torch.float32
    roundings = [(None, False), (None, False), *enumerate(oracle.NULLS[dtype])]
    types, config, ids = [wide, *[own] * (len(roundings) - 1)], source.config, ids[None]
    embedded = reference.embedded(source, ids[0])[None, :, None].expand(-1, -1, config.hc_mult, -1)
    streams = [embedded.to(one) for one in types]
    clear, layers = torch.ones_like(ids, dtype=torch.bool), []
    for index in range(config.num_hidden_layers):
        progress(f"the reference, layer {index} of {config.num_hidden_layers}")
        memory.give_back()
        asked = [
            reference.Asked(one, x, {}, None if seed is None else index * 16 + seed, sequential)
            for one, x, (seed, sequential) in zip(types, streams, roundings, strict=True)
        ]
        block = reference.StreamedBlock(source, index)
        paths = {path: kind for path, kind in block_stage(config, index, "")[1].items() if kind != "table"}
        found = reference.observations(block, asked, ids, paths)
        for path in found[0].scores:
            clear &= clear_choices(oracle.taps.find(block.copy(own), path), path, found[0], found[1:2])
        streams = [one.taps["streams"] for one in found]
        layers.append(LayerTruth(streams[0].float(), streams[1], streams[2:], clear.cummin(1)[0][0]))
    heads = {one: reference.Head(source, "", one) for one in {own, wide}}
    others = [None if seed is None else OtherBlocks(seed, sequential) for seed, sequential in roundings]
    runs = list(zip([heads[one] for one in types], streams, others, strict=True))
    exact, baseline, *nulls = reference.logits(source, runs)
    return Truth(exact, baseline, nulls, clear.cummin(1)[0][0], layers)  # later layers see earlier tokens
