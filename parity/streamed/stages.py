"""The steps of a model one after the other: the embedding, each block, the head, the MTP blocks.

Three paths go through them: `input`, the reference in the run's type, on whose streams each block is judged; `exact`,
the reference in a wider type; and the candidate's own, which ends where the candidate raises.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reference_torch import Config

from ..judging import oracle
from ..judging.rounding import OtherBlocks
from ..judging.tolerance import Measurement, measure, tap_of
from ..results import Verdict
from . import memory, reference
from .candidate import Candidate
from .measure import Agreement, agreement, distance
from .ranges import EMBEDDING, HEAD
from .reference import Asked, Head, StreamedBlock
from .results import Choices, Stage
from .source import Source

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DECODED = 8  # tokens at the end that come one by one
KINDS = {0: "window only", 4: "ratio 4"}


def names_of(config: Config) -> list[str]:
    """The names of the stages of a model, in order."""
    blocks = [f"layer {index}" for index in range(config.num_hidden_layers)]
    return [EMBEDDING, *blocks, HEAD, *(f"MTP block {index}" for index in range(config.num_nextn_predict_layers))]


def block_stage(config: Config, index: int, name: str) -> tuple[Stage, dict[str, str]]:
    """The stage of a block that is still to be judged, and what decides in it (`oracle.decision_paths`)."""
    hashed, ratio = index < config.num_hash_layers, config.ratio(index)
    paths = {"ffn.gate": "table" if hashed else "router"} | ({"attn.indexer": "indexer"} if ratio == 4 else {})
    return Stage(name, KINDS.get(ratio, f"ratio {ratio}") + ", hash-routed" * hashed, Verdict.PARITY), paths


class Stages:
    """One run over a checkpoint on token ids [S]; `streams` are those after the stage that was judged last."""

    def __init__(self, source: Source, ids: Tensor, dtype: str):
        self.source, self.config, self.ids, self.name = source, source.config, ids[None], dtype
        self.dtype = DTYPES[dtype]
        self.wide = torch.float64 if dtype == "float32" else torch.float32  # bfloat16's steps are 2^15 of float32's
        self.depth = self.config.num_nextn_predict_layers
        self.decoded = min(DECODED, len(ids) // 2)
        self.candidate = Candidate(source.folder, self.dtype)
        self.streams: dict[str, Tensor] = {}
        self.text: Agreement | None = None
        self.text_baseline: Agreement | None = None

    def all(self) -> list[tuple[str, str, Callable[[bool], Stage]]]:
        """Name, prefix of the published names, and what judges it, of every stage in order; with False, its streams are
        all that is wanted."""
        layers = self.config.num_hidden_layers
        block = lambda i, name: (name, reference.prefix_of(self.config, i), lambda judged: self.block(i, name, judged))  # noqa: E731
        first, *names = names_of(self.config)
        return [
            (first, "embed.", lambda judged: self.embedding()),
            *(block(i, names[i]) for i in range(layers)),
            (names[layers], "head.", lambda judged: self.head()),
            *(block(layers + i, name) for i, name in enumerate(names[layers + 1 :])),
        ]

    def ranges(self, prefix: str) -> list:
        """What of the files a part is read from."""
        return self.source.ranges(prefix)

    def embedding(self) -> Stage:
        """The streams before the first block."""
        exact = reference.embedded(self.source, self.ids[0])[None, :, None].expand(-1, -1, self.config.hc_mult, -1)
        self.streams = {"exact": exact.to(self.wide), "input": exact.to(self.dtype)}
        stage = Stage(EMBEDDING, "rows by token id", Verdict.PARITY)
        got = self.candidate.embedded(self.ids)
        if got.shape != exact.shape:
            return diverges(stage, f"'streams' has shape {tuple(got.shape)} where {tuple(exact.shape)} was asked for")
        self.streams["candidate"] = got
        return measured(stage, self._limits({"streams": (self.streams["exact"], self.streams["input"], [], got)}))

    def block(self, index: int, name: str, judge: bool = True) -> Stage:
        """One block: alone on the reference's streams, and on its own path; unless it is to be judged, what the paths
        need of that."""
        config, depth = self.config, index - self.config.num_hidden_layers
        stage, paths = block_stage(config, index, name)
        ids, given, embed, embedded = self.ids, self.streams, None, None
        if depth >= 0:  # reads each token's streams beside the embedding of the next
            ids, given = self.ids[:, 1:], {path: streams[:, :-1] for path, streams in self.streams.items()}
            embed, embedded = self.candidate.embedding(), reference.embedded(self.source, ids[0])[None]
        memory.give_back()
        calls = (ids.shape[1] - self.decoded, *[1] * self.decoded)
        try:
            block = self.candidate.block(index)
            alone = block.observed(given["input"], ids, calls, paths, embed)
            own = block.observed(given["candidate"], ids, calls, paths, embed) if "candidate" in given else None
        except oracle.CandidateRaised as raised:
            alone = own = None
            stage.verdict, stage.sentence = Verdict.CRASHED, f"raises {raised}"
        block = None  # the candidate's weights go before the reference's come
        memory.give_back()
        streamed = StreamedBlock(self.source, index)
        replay = oracle.replayable(alone, paths) if alone else {}
        asked = [Asked(self.wide, given["exact"]), Asked(self.dtype, given["input"], replay)]
        if alone and judge:
            asked += [Asked(self.wide, given["input"], replay)]
            asked += [
                Asked(self.dtype, given["input"], replay, index * 16 + i, s)
                for i, s in enumerate(oracle.NULLS[self.name])
            ]
        path, baseline, *others = reference.observations(streamed, asked, ids, paths, embedded)
        if others:
            exact, *nulls = others
            model = streamed.copy(self.dtype)
            judged = oracle.judge(exact, baseline, nulls, alone, model, self.name)
            measured(stage, judged.taps, judged)
            stage.isolated = distance(exact.taps["streams"], alone.taps["streams"])
            stage.isolated_baseline = distance(exact.taps["streams"], baseline.taps["streams"])
        after = {"exact": path.taps["streams"], "input": baseline.taps["streams"]}
        stage.accumulated_baseline = distance(after["exact"], after["input"])
        if own is not None and own.taps["streams"].shape == after["input"].shape:
            after["candidate"] = own.taps["streams"]
            stage.accumulated = distance(after["exact"], after["candidate"])
        if depth < 0:
            self.streams = after
        return stage

    def head(self) -> Stage:
        """Logits: of the candidate's head on the reference's streams, and at the end of each path."""
        stage = Stage(HEAD, "mixing, norm and logits", Verdict.PARITY)
        heads = {dtype: Head(self.source, "", dtype) for dtype in (self.wide, self.dtype)}
        given = self.streams["input"]
        runs = [(heads[self.wide], given.to(self.wide), None), (heads[self.dtype], given, None)]
        runs += [(heads[self.wide], self.streams["exact"], None)]
        runs += [(heads[self.dtype], given, OtherBlocks(i, s)) for i, s in enumerate(oracle.NULLS[self.name])]
        memory.give_back()
        exact, baseline, truth, *nulls = reference.logits(self.source, runs)
        memory.give_back()
        try:
            found = self.candidate.logits([given, *(x for name, x in self.streams.items() if name == "candidate")])
        except oracle.CandidateRaised as raised:
            stage.verdict, stage.sentence = Verdict.CRASHED, f"raises {raised}"
            return stage
        got, own = found[0], found[1] if len(found) > 1 else None
        if got.shape != exact.shape:
            return diverges(stage, f"'logits' has shape {tuple(got.shape)} where {tuple(exact.shape)} was asked for")
        measured(stage, self._limits({"logits": (exact, baseline, nulls, got)}))
        stage.isolated, stage.isolated_baseline = distance(exact, got), distance(exact, baseline)
        stage.accumulated_baseline = distance(truth, baseline)
        self.text_baseline = agreement(truth[0], baseline[0], self.ids[0])
        if own is not None:
            stage.accumulated = distance(truth, own)
            self.text = agreement(truth[0], own[0], self.ids[0])
        return stage

    def _limits(self, runs: dict[str, tuple[Tensor, Tensor, list[Tensor], Tensor]]) -> dict[str, Measurement]:
        return {name: measure(*tensors, self.name) for name, tensors in runs.items()}


def diverges(stage: Stage, sentence: str) -> Stage:
    """The stage, with what is wrong in a sentence."""
    stage.verdict, stage.sentence, stage.ratio = Verdict.DIVERGES, sentence, float("inf")
    return stage


def measured(stage: Stage, taps: dict[str, Measurement], judged: oracle.Judged | None = None) -> Stage:
    """The stage with what was measured, and what deviates most in a sentence."""
    judged = judged or oracle.Judged(taps)
    stage.ratio = judged.ratio
    stage.taps = [tap_of(name, [m]) for name, m in taps.items()]
    stage.choices = [
        Choices(path, one.tokens, 1 - (one.ties + one.illegal) / max(one.tokens, 1), one.ties, one.illegal)
        for path, one in judged.choices.items()
    ]
    if not judged.ratio <= 1:
        diverges(stage, judged.worst()).ratio = judged.ratio
    return stage
