"""The steps of a conversion's model one after the other, each against the original's.

Three paths go through them: `exact`, the reference with the original's weights, on whose streams each block is judged;
`rounded`, the reference with those weights honestly rounded to the conversion's formats; and the candidate's own, from
the conversion's folder. What an error is held to is what honest rounding does there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_torch.config import Config
from reference_torch.norm import wide

from ..errors import BadInput
from ..judging import oracle
from ..judging.tolerance import CONVERSION, measure
from ..results import Verdict
from ..streamed import memory, reference
from ..streamed.candidate import Candidate, Rows
from ..streamed.measure import Agreement, agreement, distance
from ..streamed.ranges import EMBEDDING, FILES, HEAD
from ..streamed.reference import HEAD_ROWS, Asked, Head
from ..streamed.results import Stage, WeightRow
from ..streamed.source import Source
from ..streamed.stages import DECODED, DTYPES, block_stage, diverges, measured, names_of
from ..streamed.together import run_together
from .block import COPIES, ORIGINAL, ComparedBlock, Plain, of_copy, plain_reading
from .naming import name_it
from .weights import Compared, Weights, decibel

BLOCK = re.compile(r"(layers|mtp)\.\d+\.")
SHOWN = 12  # tensors of a stage that are named, the worst first; in the model's order where all are
CLEARLY = 100.0  # times their limit
# Without these the same, tensors of the two cannot be compared.
SIDES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_hash_layers", "num_attention_heads", "head_dim",
    "qk_rope_head_dim", "q_lora_rank", "o_groups", "o_lora_rank", "index_n_heads", "index_head_dim", "n_routed_experts",
    "num_experts_per_tok", "moe_intermediate_size", "hc_mult",
)  # fmt: skip


class Conversions:
    """One run over a conversion and its original on token ids [S]; `streams` are those after the stage judged last."""

    def __init__(self, original: Source, conversion: Source, ids: Tensor, dtype: str):
        self.source, self.original, self.config = conversion, original, original.config
        self.ids, self.dtype = ids[None], DTYPES[dtype]
        self.complaints = conversion.complaints
        self.wide = torch.float64 if dtype == "float32" else torch.float32
        self.decoded = min(DECODED, len(ids) // 2)
        self.weights, self.reading = Weights(original, conversion, name_it), plain_reading(original.config)
        self.streams: dict[str, Tensor] = {}
        self.text: Agreement | None = None
        self.text_baseline: Agreement | None = None
        self.depth = min(original.config.num_nextn_predict_layers, conversion.config.num_nextn_predict_layers)
        self.differing = differing(original.config, conversion.config)
        if sides := [name for name in self.differing if name in SIDES]:
            raise BadInput(f"The two folders are of models of other sizes: {', '.join(sides)} differ in config.json.")
        self.candidate = None if self.complaints else Candidate(conversion.folder, self.dtype)

    def all(self) -> list[tuple[str, str, Callable[[bool], Stage]]]:
        """Name, prefix of the published names, and what judges it, of every stage in order; with False, its streams are
        all that is wanted. Of a folder that no program can load, what is wrong with it alone."""
        layers = self.config.num_hidden_layers
        block = lambda i, name: (name, reference.prefix_of(self.config, i), lambda judged: self.block(i, name, judged))  # noqa: E731
        first, *names = names_of(self.config)
        files = (FILES, "config.json", lambda judged: self.files())
        if self.complaints:
            return [files]
        return [
            files,
            (first, "embed.", lambda judged: self.embedding()),
            *(block(i, names[i]) for i in range(layers)),
            (names[layers], "head.", lambda judged: self.head()),
            *(block(layers + i, name) for i, name in enumerate(names[layers + 1 :][: self.depth])),
        ]

    def ranges(self, prefix: str) -> list:
        """What of both folders' files a part is read from."""
        return self.original.ranges(prefix) + self.source.ranges(prefix)

    def files(self) -> Stage:
        """What the conversion's config and headers say."""
        stage = Stage(FILES, "config and tensors", Verdict.PARITY)
        told = [sentence.rstrip(".") for sentence in self.complaints]
        for name, (want, got) in self.differing.items():
            told.append(f"config.json has {name} {got!r} where the original's has {want!r}")
        return diverges(stage, "; ".join(told)) if told else stage

    def embedding(self) -> Stage:
        """The streams before the first block."""
        stage, ids = Stage(EMBEDDING, "rows by token id", Verdict.PARITY), self.ids[0]
        rows, start = {copy: torch.zeros(len(ids), self.config.hidden_size) for copy in COPIES}, 0
        for taken in self.weights.take_rows("embed.weight", HEAD_ROWS):
            here = (ids >= start) & (ids < start + len(taken.original))
            for copy, found in rows.items():
                found[here] = of_copy(taken, copy)[ids[here] - start]
            start += len(taken.original)
        exact, rounded, other = (rows[copy][None, :, None].expand(-1, -1, self.config.hc_mult, -1) for copy in COPIES)
        got = self.candidate.embedded(self.ids)
        self.streams = {"exact": exact.to(self.wide), "rounded": rounded.to(self.dtype)}
        if got.shape == exact.shape:
            self.streams["candidate"] = got
            taps = measure(exact, rounded.to(self.dtype), [other.to(self.dtype)], got, CONVERSION)
            measured(stage, {"streams": taps})
            stage.isolated, stage.isolated_baseline = distance(exact, got), distance(exact, rounded)
        else:
            diverges(stage, f"'streams' has shape {tuple(got.shape)} where {tuple(exact.shape)} was asked for")
        return self._with_weights(stage, "embed.")

    def block(self, index: int, name: str, judge: bool = True) -> Stage:
        """One block: alone on the exact streams, if it is to be judged, and on each path."""
        config, depth = self.config, index - self.config.num_hidden_layers
        stage, paths = block_stage(config, index, name)
        ids, streams, embed, embedded = self.ids, self.streams, None, None
        if depth >= 0:  # reads each token's streams beside the embedding of the next
            ids, streams = self.ids[:, 1:], {path: one[:, :-1] for path, one in streams.items()}
            embedded = reference.embedded(self.original, ids[0])[None]
            embed = Rows(ids, embedded, self.dtype)  # the conversion's own was judged
        given = streams["exact"].to(self.dtype)
        calls = (ids.shape[1] - self.decoded, *[1] * self.decoded)
        try:
            block = self.candidate.block(index)
            alone = block.observed(given, ids, calls, paths, embed) if judge else None
            own = block.observed(streams["candidate"], ids, calls, paths, embed) if "candidate" in streams else None
        except oracle.CandidateRaised as raised:
            alone = own = None
            stage.verdict, stage.sentence = Verdict.CRASHED, f"raises {raised}"
        block = None  # the candidate's weights go before the reference's come
        memory.give_back()
        compared = ComparedBlock(self.weights, self.reading, index)
        replay = oracle.replayable(alone, paths) if alone else {}
        asked = [(ORIGINAL, Asked(self.wide, streams["exact"])), (0, Asked(self.dtype, streams["rounded"]))]
        if judge:
            asked += [(ORIGINAL, Asked(self.wide, given, replay))]
            asked += [(copy, Asked(self.dtype, given, replay)) for copy in (0, 1)]
        runs = [
            reference.run_of(compared.copy(copy, one.dtype), one, ids, paths, embedded, (copy, one.dtype))
            for copy, one in asked
        ]
        path, rounded, *others = run_together(runs, compared.expert)
        if judge:
            exact, baseline, other = others
            stage.isolated_baseline = distance(exact.taps["streams"], baseline.taps["streams"])
            compared.compare_rest()
        if alone:
            judged = oracle.judge(exact, baseline, [other], alone, compared.copy(ORIGINAL, self.wide), CONVERSION)
            measured(stage, judged.taps, judged)
            stage.isolated = distance(exact.taps["streams"], alone.taps["streams"])
        after = {"exact": path.taps["streams"], "rounded": rounded.taps["streams"]}
        stage.accumulated_baseline = distance(after["exact"], after["rounded"])
        if own is not None and own.taps["streams"].shape == after["exact"].shape:
            after["candidate"] = own.taps["streams"]
            stage.accumulated = distance(after["exact"], after["candidate"])
        if depth < 0:
            self.streams = after
        return self._with_weights(stage, compared.prefix)

    def head(self) -> Stage:
        """Logits: of the candidate's head on the exact streams, and at the end of each path."""
        stage = Stage(HEAD, "mixing, norm and logits", Verdict.PARITY)
        names = ("norm.weight", "hc_head_fn", "hc_head_base", "hc_head_scale")
        taken = {name: self.weights.take(name) for name in names}
        sources = {copy: Plain(self.weights, self.reading, taken, copy) for copy in COPIES}
        given = self.streams["exact"].to(self.dtype)
        runs = [(ORIGINAL, self.wide, given), (0, self.dtype, given), (1, self.dtype, given)]
        runs += [(ORIGINAL, self.wide, self.streams["exact"]), (0, self.dtype, self.streams["rounded"])]
        with torch.no_grad():
            read = [wide(Head(sources[copy], "", dtype).hidden(x.to(dtype))) for copy, dtype, x in runs]
            parts = [[] for _ in runs]
            for rows in self.weights.take_rows("head.weight", HEAD_ROWS):
                for found, x, (copy, _, _) in zip(parts, read, runs, strict=True):
                    found.append(F.linear(x, of_copy(rows, copy).to(x.dtype)))
        exact, baseline, other, truth, rounded = [torch.cat(found, -1) for found in parts]
        try:
            found = self.candidate.logits([given, *(x for name, x in self.streams.items() if name == "candidate")])
        except oracle.CandidateRaised as raised:
            stage.verdict, stage.sentence = Verdict.CRASHED, f"raises {raised}"
            return self._with_weights(stage, *names, "head.")
        got, own = found[0], found[1] if len(found) > 1 else None
        if got.shape != exact.shape:
            diverges(stage, f"'logits' has shape {tuple(got.shape)} where {tuple(exact.shape)} was asked for")
            return self._with_weights(stage, *names, "head.")
        measured(stage, {"logits": measure(exact, baseline, [other], got, CONVERSION)})
        stage.isolated, stage.isolated_baseline = distance(exact, got), distance(exact, baseline)
        stage.accumulated_baseline = distance(truth, rounded)
        self.text_baseline = agreement(truth[0], rounded[0], self.ids[0])
        if own is not None:
            stage.accumulated = distance(truth, own)
            self.text = agreement(truth[0], own[0], self.ids[0])
        return self._with_weights(stage, *names, "head.")

    def _with_weights(self, stage: Stage, *prefixes: str) -> Stage:
        """The stage with what its tensors are worth; those that rounding does not explain are the reason."""
        found = {name: one for name, one in self.weights.found.items() if name.startswith(prefixes)}
        stage.weights = rows(found, prefixes[0])
        wrong = sorted((one for one in found.values() if not one.ratio <= 1), key=lambda one: -min(one.ratio, CLEARLY))
        stage.wrong = [f"{one.name} {one.sentence}" for one in wrong[:SHOWN]]
        if wrong and stage.verdict is not Verdict.CRASHED:
            more = f" ({len(wrong) - 1} more of {len(found)} tensors deviate)" if len(wrong) > 1 else ""
            diverges(stage, stage.wrong[0] + more).ratio = max(stage.ratio, *(one.ratio for one in wrong))
        elif stage.verdict is Verdict.DIVERGES:
            stage.sentence += "; its tensors are what rounding explains, so the model that runs them is suspect"
        self.weights.forget(found)
        return stage


def differing(original: Config, conversion: Config) -> dict[str, tuple[object, object]]:
    """What the two configs say otherwise of the same model: name -> (original's, conversion's). A conversion may lack
    MTP blocks."""
    both = {one.name: (getattr(original, one.name), getattr(conversion, one.name)) for one in fields(Config)}
    del both["num_nextn_predict_layers"]
    layers = slice(original.num_hidden_layers)
    both["compress_ratios"] = tuple(ratios[layers] for ratios in both["compress_ratios"])
    return {name: (want, got) for name, (want, got) in both.items() if want != got}


def rows(found: dict[str, Compared], prefix: str) -> list[WeightRow]:
    """A row a matrix, one for all experts' w1, ..."""
    groups: dict[tuple[str, str], list[Compared]] = {}
    for name, one in found.items():
        if one.matrix:
            local = name.removeprefix(prefix) if BLOCK.match(name) else name
            local = "ffn.experts.*." + local.split(".")[3] if local.startswith("ffn.experts.") else local
            groups.setdefault((local.removesuffix(".weight"), one.stored), []).append(one)
    return [
        WeightRow(
            what,
            stored,
            len(ones),
            decibel(sum(one.signal for one in ones), sum(one.noise for one in ones)),
            min(decibel(one.signal, one.noise) for one in ones),
            decibel(sum(one.signal for one in ones), sum(one.honest_noise for one in ones)),
            max(one.ratio for one in ones),
        )
        for (what, stored), ones in groups.items()
    ]
