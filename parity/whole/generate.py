"""dsv4_mlx, whole and alone, continues prompts greedily through mlx-lm.

Each token is held to a recorded one; where nothing is recorded, to the best one of dsv4_mlx's own logits in one call
without a cache. A token that differs is a tie where the exact logits of both are as near to the best as rounding may
move them (`judging/decisions.py`), for which dsv4_mlx in float32 stands for exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import torch
from torch import Tensor

import dsv4_mlx

from ..judging import decisions
from ..judging.oracle import CandidateRaised, raising
from ..judging.sides import from_mlx
from ..judging.tolerance import measure
from ..results import Verdict
from ..streamed import memory
from ..streamed.candidate import refused
from ..streamed.results import Choices, Continuation, Stage
from ..streamed.source import Source
from ..streamed.tokens import decoded, encoded
from .records import Record

GENERATE = "generate"
PROMPTS = (
    "The lighthouse keeper wrote down the weather every morning, as his father had done",
    "def tide(hours: float, mean: float = 2.1) -> float:",
    "If a tank holds 240 litres and drains at 1.5 litres a minute, it is empty after",
)
MOST_DIFFERING = 16  # tokens of a record, after each of which the prompt is fed anew; what comes then is not looked at
MLX = {"float32": mx.float32, "bfloat16": mx.bfloat16}
COARSE_FIRST = ("bfloat16", "float32")


def prompts(folder: Path, vocabulary: int) -> list[Record]:
    """The package's own, in the checkpoint's tokens; their bytes where it has no tokenizer, or one that knows none of
    the words."""
    found = []
    for index, text in enumerate(PROMPTS, start=1):
        ids = encoded(text, folder, True, vocabulary).tolist()
        known = len({*ids}) > 1
        ids = ids if known else [byte % vocabulary for byte in text.encode()]
        found.append(Record(f"prompt-{index}", ids, prompt=text if known else ""))
    return found


@dataclass
class Followed:
    """What a prompt was continued with, each token under the wanted ones before it, and what was wanted."""

    record: Record
    got: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)

    @property
    def differing(self) -> list[int]:
        """Positions from 0."""
        return [at for at, (got, wanted) in enumerate(zip(self.got, self.wanted, strict=True)) if got != wanted]

    @property
    def first(self) -> int:
        """The position in `given` after which the first token was chosen."""
        return len(self.record.prompt_ids) - 1

    @property
    def given(self) -> list[int]:
        """The ids under which every token was chosen."""
        return self.record.prompt_ids + (self.wanted if self.record.ids else self.got)[:-1]


def steps(model, prompt: list[int], count: int) -> Iterator[tuple[int, float]]:
    """So many greedy tokens by mlx-lm, each with the margin between the best logit and the second."""
    from mlx_lm.generate import generate_step  # brings transformers

    for token, scores in generate_step(mx.array(prompt), model, max_tokens=count):
        low, high = sorted(mx.topk(scores, 2).tolist())
        yield int(token), high - low


def follow(model, record: Record, most: int | None) -> Followed:
    """A record's tokens, or without any `most` free ones; after a token that differs it goes on with the wanted one."""
    path = Followed(record)
    if not record.ids:
        for token, margin in steps(model, record.prompt_ids, most):
            path.got.append(token)
            path.margins.append(margin)
        path.wanted = mx.argmax(_logits(model, path)[path.first :], axis=-1).tolist()
        return path
    wanted = record.ids[:most]
    for _ in range(MOST_DIFFERING):
        start = len(path.got)
        for token, margin in steps(model, record.prompt_ids + wanted[:start], len(wanted) - start):
            path.got.append(token)
            path.margins.append(margin)
            if token != wanted[len(path.got) - 1]:
                break
        if len(path.got) == len(wanted):
            break
    path.wanted = wanted[: len(path.got)]
    return path


def _logits(model, path: Followed, cache=None) -> mx.array:
    """Of the given ids [S, V], in one call; with a cache token by token after the prompt."""
    ids = mx.array([path.given])
    if cache is None:
        return model(ids)[0]
    found = [model(ids[:, : path.first + 1], cache)[0]]
    for at in range(path.first + 1, ids.shape[1]):
        found.append(model(ids[:, at : at + 1], cache)[0])
        mx.eval(found[-1])
    return mx.concatenate(found)


def judge(
    source: Source, records: list[Record], most: int | None, dtype: str, progress: Callable[[str], None]
) -> tuple[Stage, list[Continuation]]:
    """The stage, and each prompt's continuation. Raises BadInput for what the folder's reader refuses."""
    stage = Stage(GENERATE, "whole, greedy, by mlx-lm", Verdict.PARITY)
    stage.bytes = sum(size for *_, size in source.ranges(""))
    try:
        paths = _followed(source.folder, records, most, dtype, progress)
        limits = _limits(source.folder, [path for path in paths if path.differing], dtype, progress)
    except CandidateRaised as raised:
        stage.verdict, stage.sentence = Verdict.CRASHED, f"raises {raised}"
        return stage, []
    found = [_held(path, limits.get(path.record.name), source.folder) for path in paths]
    differing, illegal = (sum(map(len, lists)) for lists in ([p.differing for p in paths], [c.wrong for c in found]))
    tokens = sum(len(path.got) for path in paths)
    stage.choices = [Choices("next token", tokens, 1 - differing / tokens, differing - illegal, illegal)]
    stage.wrong = [f"{one.name}: {said}" for one in found for said in one.wrong]
    if stage.wrong:
        stage.verdict, stage.sentence, stage.ratio = Verdict.DIVERGES, stage.wrong[0], math.inf
    return stage, found


def _followed(folder: Path, records: list[Record], most: int | None, dtype: str, progress) -> list[Followed]:
    """Every prompt; the model is in memory for as long as this takes."""
    progress("loading the whole model")
    with refused():
        model = dsv4_mlx.load(folder, MLX[dtype])
    paths = []
    for index, record in enumerate(records, start=1):
        progress(f"{index} of {len(records)}: {record.name}, {len(record.prompt_ids)} tokens of a prompt")
        paths.append(raising(lambda record=record: follow(model, record, most)))
    return paths


def _limits(folder: Path, paths: list[Followed], dtype: str, progress) -> dict[str, tuple[Tensor, float]]:
    """By the prompt's name its exact logits [T, V] at each choice, and how far rounding may move one of them: by what
    the coarser of the run's and the record's type does to the whole text's, in float32 another order of sums."""
    if not paths:
        return {}
    found, exact = {}, _all(folder, "float32", paths, progress)
    for coarse in COARSE_FIRST:
        these = [path for path in paths if _coarser(dtype, path.record.dtype) == coarse]
        rounded = _all(folder, coarse, these, progress, decode=coarse == "float32") if these else []
        for path, baseline in zip(these, rounded, strict=True):
            truth = exact[paths.index(path)]
            found[path.record.name] = truth[path.first :], measure(truth, baseline, [], baseline, coarse).limit_max
    return found


def _coarser(*dtypes: str | None) -> str:
    return next(one for one in COARSE_FIRST if one in dtypes)


def _all(folder: Path, dtype: str, paths: list[Followed], progress, decode: bool = False) -> list[Tensor]:
    """Logits of all paths in a type; a tensor keeps it, because it sets the least that rounding may do."""
    memory.give_back()
    progress(f"what rounding explains: the whole model in {dtype}{', token by token' * decode}")
    with refused():
        model = dsv4_mlx.load(folder, MLX[dtype])
    run = lambda path: from_mlx(_logits(model, path, model.make_cache() if decode else None))  # noqa: E731
    return [raising(lambda path=path: run(path)) for path in paths]


def _held(path: Followed, limit: tuple[Tensor, float] | None, folder: Path) -> Continuation:
    """A continuation with its ties and what is wrong, a clause each."""
    record, source = path.record, "was recorded" if path.record.ids else "is the best of one call"
    one = Continuation(record.name, record.prompt, record.prompt_ids, path.got, decoded(path.got, folder), path.margins)
    if not all(map(math.isfinite, path.margins)):
        at = next(at for at, margin in enumerate(path.margins) if not math.isfinite(margin))
        one.wrong.append(f"the logits of token {at} are not finite")
        return one
    for at in path.differing:
        truth, noise = limit
        picks = torch.tensor([[[path.got[at]], [path.wanted[at]]]])
        scores = truth[None, [at, at]].double()
        choice = decisions.judge(scores, torch.ones_like(scores, dtype=torch.bool), picks, 1, noise)
        behind = float(scores.max() - scores.gather(-1, picks).min())
        recorded = f", recorded {record.margins[at]:.3g}" if record.margins else ""
        said = (
            f"token {at} is {path.got[at]} where {path.wanted[at]} {source}, with a margin of {path.margins[at]:.3g}"
            f"{recorded}; in float32 {behind:.3g} lie between the best and the lower of both, "
            f"{'within' if not choice.illegal else 'beyond'} the {2 * noise:.3g} that rounding explains"
        )
        (one.wrong if choice.illegal else one.ties).append(said)
    return one
