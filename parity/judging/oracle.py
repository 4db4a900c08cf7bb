"""Running one example on both sides: the candidate first, then the reference exactly, in the run's type, and with
other rounding.

Every run records its taps, the scores before each decision, and the decision. The reference replays the candidate's
decisions, so that one tie does not spoil what comes after it; whether the decisions were legal is judged from the
exact scores (method, section 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from . import decisions, taps, undecided
from .rounding import OtherRounding
from .sides import TorchSide
from .tolerance import EXACT, Measurement, measure

# Members of the null: (sequential,). Sequential sums are the worst order in float32; in bfloat16 the order hardly
# matters.
NULLS = {"float32": (True, False, False), "bfloat16": (False, False, False), "float64": (True, False)}


class CandidateRaised(Exception):
    """The candidate raised where the reference computed; the message is one line."""


@dataclass
class Observation:
    """What one run gave: taps by name; by the path of the module that decided, scores and picks.

    `picks` are what the run went on with; under replay, `free` are what the module would have chosen itself.
    """

    taps: dict[str, Tensor]
    scores: dict[str, Tensor] = field(default_factory=dict)
    picks: dict[str, Tensor] = field(default_factory=dict)
    free: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Judged:
    """One example: a measurement a tap, a choice a decision, and what cannot be compared at all."""

    taps: dict[str, Measurement] = field(default_factory=dict)
    choices: dict[str, decisions.Choice] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Worst error over limit; infinite for an illegal choice or a tensor that does not compare."""
        if self.broken or any(choice.illegal for choice in self.choices.values()):
            return float("inf")
        return max((m.ratio for m in self.taps.values()), default=float("inf"))

    def worst(self) -> str:
        """What deviates most, in a sentence; decisions and broken tensors before numbers."""
        for name, problem in self.broken.items():
            return f"'{name}' {problem}"
        wrong = {name: m for name, m in self.taps.items() if m.ratio > 1}
        for name, choice in self.choices.items():
            if choice.illegal and not (wrong and name + ".scores" in wrong):
                reason = choice.note or f"the worst lies {choice.worst_excess:.3g} noise margins beyond the cut"
                return (
                    f"'{name}' chose otherwise than its exact scores allow for {choice.illegal} of "
                    f"{choice.tokens} tokens ({reason})"
                )
        name = max(self.taps, key=lambda key: self.taps[key].ratio)
        m = self.taps[name]
        if m.error_rms * max(m.limit_max, 1e-300) >= m.error_max * max(m.limit_rms, 1e-300):
            return f"'{name}' has an RMS error of {m.error_rms:.2e}, {m.ratio:.3g} times its limit of {m.limit_rms:.2e}"
        return f"'{name}' has a largest error of {m.error_max:.2e}, {m.ratio:.3g} times its limit of {m.limit_max:.2e}"


def decision_paths(config: dict) -> dict[str, str]:
    """Paths of the modules that decide -> "router", "table" (hash-routed) or "indexer"."""
    paths = {}
    for layer, ratio in enumerate(config["compress_ratios"]):
        depth = layer - config["num_hidden_layers"]
        prefix = f"layers.{layer}" if depth < 0 else f"mtp.{depth}"
        paths[f"{prefix}.ffn.gate"] = "table" if layer < config["num_hash_layers"] else "router"
        if ratio == 4:
            paths[f"{prefix}.attn.indexer"] = "indexer"
    return paths


def observe(
    side, run: Callable[[], dict[str, Tensor]], paths: dict[str, str], replay: dict[str, Tensor] | None = None
) -> Observation:
    """Call `run`, recording scores and picks of every deciding module, with the picks in `replay` forced."""
    points = {}
    for path in paths:
        points[f"{path}:scores"] = (path, "scores")
        points[f"{path}:select"] = (path, "select")
    forced = {}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for path, picks in (replay or {}).items():
            if paths[path] == "indexer":
                picks = picks.sort(-1, descending=True)[0]
            forced[path] = stack.enter_context(taps.forcing(taps.find(side.model, path), side.integers(picks)))
        record = stack.enter_context(taps.recording(side.model, points)) if paths else {}
        outputs = run()
    observation = Observation(outputs)
    for path in paths:
        if record[f"{path}:scores"]:
            observation.scores[path] = _joined([side.tensor(x) for x in record[f"{path}:scores"]], 0.0)
            observation.picks[path] = _joined([side.tensor(x).long() for x in record[f"{path}:select"]], -1)
            free = forced.get(path, record[f"{path}:select"])
            observation.free[path] = _joined([side.tensor(x).long() for x in free], -1)
    return observation


def observe_candidate(
    side, run: Callable, paths: dict[str, str], replay: dict[str, Tensor] | None = None
) -> Observation:
    """`observe` for code that is judged: whatever it raises is about it, not the harness. Raises CandidateRaised."""
    return raising(lambda: observe(side, run, paths, replay))


def raising(run: Callable):
    """What the code that is judged gives. Raises CandidateRaised."""
    try:
        return run()
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise CandidateRaised(f"{type(error).__name__}: {reason}") from error


def _joined(parts: list[Tensor], fill: float) -> Tensor:
    """Calls' outputs [B, S_i, N_i] as one [B, S, N], short rows filled up."""
    width = max(part.shape[-1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[-1]), value=fill) for part in parts], dim=1)


def null_runs(
    side: TorchSide, run: Callable[[], dict[str, Tensor]], paths, replay, dtype: str, seed: int
) -> list[Observation]:
    """The baseline again with other rounding, as many times as the type asks for."""
    runs = []
    for index, sequential in enumerate(NULLS[dtype]):
        with OtherRounding(seed * 16 + index, sequential):
            runs.append(observe(side, run, paths, replay))
    return runs


def judge(
    exact: Observation,
    baseline: Observation,
    nulls: list[Observation],
    candidate: Observation,
    model,
    dtype: str,
    nudged: list[Observation] | tuple = (),
) -> Judged:
    """Measure every tap and every decision of the candidate.

    `model` is the exact side's, or None where nothing decides; `nudged` are the exact runs with undecided roundings
    moved.
    """
    judged = Judged()
    for name, reference in exact.taps.items():
        got = candidate.taps.get(name)
        if got is None:
            judged.broken[name] = "was not produced"
        elif got.shape != reference.shape:
            judged.broken[name] = f"has shape {tuple(got.shape)} where the reference has {tuple(reference.shape)}"
        elif got.dtype.is_floating_point != reference.dtype.is_floating_point:
            judged.broken[name] = f"has type {got.dtype}"
        elif not reference.isfinite().all():
            judged.broken[name] = "is not finite in the exact reference, so that it cannot be compared"
        else:
            others = [run.taps[name] for run in nulls], [run.taps[name] for run in nudged]
            judged.taps[name] = measure_rows(reference, baseline.taps[name], *others, got, dtype)
    for path, scores in exact.scores.items():
        if path not in candidate.scores or candidate.scores[path].shape != scores.shape:
            judged.broken[f"{path}.scores"] = "was not produced in the reference's shape"
            continue
        module = taps.find(model, path)
        runs = hidden_scores(module, path, [exact, baseline, candidate, *nulls, *nudged])
        others = runs[3 : 3 + len(nulls)], runs[3 + len(nulls) :]
        judged.taps[f"{path}.scores"] = measure_rows(runs[0], runs[1], *others, runs[2], dtype)
        picks = candidate.picks[path]
        judged.choices[path] = judge_picks(module, path, picks, exact, baseline, nulls, nudged, dtype)
    return judged


def measure_rows(
    exact: Tensor, baseline: Tensor, nulls: list[Tensor], nudged: list[Tensor], got: Tensor, dtype: str
) -> Measurement:
    """`measure`, but that rows behind an undecided rounding may differ by what its flip does."""
    if not nudged or not exact.numel():
        return measure(exact, baseline, nulls, got, dtype)
    decided, noise = undecided.decided_rows(exact, baseline, [*nulls, *nudged])
    if decided.all() or not decided.any():
        return measure(exact, baseline, [*nulls, *nudged], got, dtype)
    kept = [tensor[decided] for tensor in (exact, baseline, got, *nulls, *nudged)]
    measured = measure(kept[0], kept[1], kept[3:], kept[2], dtype)
    error = undecided.largest_by_row(got.double() - exact.double())
    beyond = (error / (measured.limit_max + undecided.FLIP_MARGIN * noise))[~decided].max()
    return dataclasses.replace(measured, error_max=max(measured.error_max, float(beyond) * measured.limit_max))


def hidden_scores(module, path: str, runs: list[Observation]) -> list[Tensor]:
    """The scores of each run, with 0 for what may not be chosen."""
    allowed, _ = allowed_items(module, runs[0].scores[path])
    return [run.scores[path].masked_fill(~allowed, 0) for run in runs]


def judge_picks(
    module, path: str, picks: Tensor, exact: Observation, baseline: Observation, nulls, nudged, dtype: str
) -> decisions.Choice:
    """Are these picks [B, S, k] what the exact scores allow, within the noise of the scores at each token?"""
    scores = exact.scores[path]
    if getattr(module, "hashed", False):
        return decisions.same(exact.picks[path], picks, scores.shape[-1])
    allowed, k = allowed_items(module, scores)
    truth, base, *others = hidden_scores(module, path, [exact, baseline, *nulls, *nudged])
    noise = measure(truth, base, others[: len(nulls)], base, dtype).limit_max
    margin = torch.full(scores.shape[:2], noise, dtype=torch.float64)
    for run in others[len(nulls) :]:
        margin = torch.maximum(margin, undecided.FLIP_MARGIN * (run - truth).abs().amax(-1)) if run.numel() else margin
    biased = scores.double() + (module.bias.double() if hasattr(module, "bias") else 0)
    return decisions.judge(biased, allowed, picks, k, margin)


def allowed_items(module, scores: Tensor) -> tuple[Tensor, int]:
    """Which items each token may choose from, and how many it takes: all experts, or the rows visible at its
    position."""
    if hasattr(module, "topk"):
        visible = (torch.arange(scores.shape[1]) + 1) // module.ratio
        return (torch.arange(scores.shape[-1]) < visible[:, None]).expand_as(scores), module.topk
    return torch.ones_like(scores, dtype=torch.bool), module.config.num_experts_per_tok


def judge_exact(reference: Observation, candidate: Observation) -> Judged:
    """Judge taps that must be equal bit by bit: decoding and rounding leave no freedom."""
    judged = Judged()
    for name, expected in reference.taps.items():
        got = candidate.taps.get(name)
        if got is None or got.shape != expected.shape:
            judged.broken[name] = "was not produced in the reference's shape"
            continue
        measured = measure(expected.double(), expected, [], got, "float64")
        judged.taps[name] = dataclasses.replace(
            measured, limit_rms=0.0, limit_max=0.0, floor_rms=0.0, floor_max=0.0, rule=EXACT
        )
    return judged


def replayable(observation: Observation, paths: dict[str, str]) -> dict[str, Tensor]:
    """The candidate's picks, where the reference can follow them: ids in range, and not from a table, which leaves no
    choice."""
    usable = {}
    for path, picks in observation.picks.items():
        if paths[path] == "table":
            continue
        count = observation.scores[path].shape[-1]
        lowest = 0 if paths[path] == "router" else -1
        if not picks.numel() or (int(picks.min()) >= lowest and int(picks.max()) < count):
            usable[path] = picks
    return usable
