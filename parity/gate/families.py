"""A probe's reference: its checkpoint, its tokens, and the runs that a candidate's logits are measured against."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType

import torch
from safetensors.torch import save_file
from torch import Tensor

from reference_torch import Decoded, MTPState, checkpoint

from ..judging import oracle, undecided
from ..judging.sides import TorchSide
from ..judging.tolerance import Measurement, measure, rms
from .probes import Probe

ROWS = 2  # sequences under `batch`; the other schedules feed the first one
# A choice is clear where the gap at its cut is this many times what rounding is seen to move the scores by.
CLEAR = 8.0
DECIDED = 0.25  # of the clear tokens must hang on no simulated rounding for them alone to be judged
SEEDS = 6  # how many draws of the weights are tried for one in which every choice is clear


@dataclass
class Family:
    """A probe's runs in the reference, one shot, on `ids` [ROWS, tokens], one token more where the MTP block reads.

    clear [ROWS, tokens]: tokens that no unclear choice of experts or rows reaches, nor an unclear rounding where the
    reference simulates roundings. Only these are judged.
    """

    probe: Probe
    tensors: dict[str, Tensor]
    ids: Tensor
    exact: Tensor
    baseline: Tensor
    nulls: list[Tensor]
    clear: Tensor
    spelling: str = "F1"
    simulation: str = "none"
    decoded: dict[tuple, Decoded] = field(default_factory=dict, init=False, repr=False)

    def side(self, dtype: str) -> TorchSide:
        """The reference as it is at this moment, with whatever defects are in it. Plain weights are read once, which
        takes most of the time of a small model; what is read of packed ones many functions decide."""
        side = TorchSide(self.probe.config, options(self.simulation), self.tensors, dtype)
        if "quantization_config" not in self.probe.config:
            reading = [one.__code__ for one in vars(checkpoint).values() if isinstance(one, FunctionType)]
            key = dtype, side.config, *reading
            if key not in self.decoded:
                self.decoded[key] = side.decoded
            side.decoded = self.decoded[key]
        return side

    def write(self, folder: Path) -> Path:
        """The probe's checkpoint as a folder on disk, as published ones are laid out, or in another family's names."""
        if self.spelling != "F1":
            from .loading import write_as

            return write_as(self.spelling, self.probe.config, self.tensors, folder)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.probe.config, indent=1), encoding="utf-8")
        save_file(self.tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def rows(self, schedule: str) -> int:
        return ROWS if schedule == "batch" else 1

    def measure(
        self, schedule: str, logits: Tensor, truth: Tensor | None = None, clear: Tensor | None = None
    ) -> Measurement:
        """Logits [rows, tokens, V] against the exact ones; or against those of a reference with defects, `truth`, for
        which `clear` [ROWS, tokens] may be other tokens."""
        rows = self.rows(schedule)
        judged = (self.clear if clear is None else clear)[:rows]
        pick = lambda x: x[:rows][judged]  # noqa: E731
        if truth is None:
            return measure(
                pick(self.exact), pick(self.baseline), [pick(n) for n in self.nulls], pick(logits), self.probe.dtype
            )
        # What rounding does is known for the reference as it is; a defect that makes logits larger makes it larger too.
        grown = max(1.0, rms(pick(truth)) / rms(pick(self.exact)))
        moved = [grown * (pick(run) - pick(self.exact)) + pick(truth) for run in (self.baseline.double(), *self.nulls)]
        baseline = moved[0].to(self.baseline.dtype)
        return measure(pick(truth), baseline, moved[1:], pick(logits), self.probe.dtype)

    def clear_now(self) -> Tensor:
        """Clear tokens of the reference as it is at this moment, with whatever defects are in it."""
        return _Runs(self.probe, self.tensors, self.ids, self.simulation).clear


def options(simulation: str) -> dict:
    """The reference's options where it simulates these roundings."""
    return {"quantization_simulation": simulation}


def family(probe: Probe, seed: int, simulation: str = "none") -> Family:
    """The probe with the first weights, from `seed` on, in which every choice is clear; else those with most clear
    tokens. `simulation`: which published roundings the reference simulates."""
    best = None
    for attempt in range(SEEDS):
        number = seed * 1000 + attempt
        random = torch.Generator().manual_seed(number)
        ids = torch.randint(0, probe.config["vocab_size"], (ROWS, probe.tokens + probe.mtp), generator=random)
        runs = _Runs(probe, probe.weights(number), ids, simulation)
        if best is None or runs.quality > best[1].quality:
            best = number, runs
        if runs.quality == (True, runs.clear.numel()) or (runs.nudged and len(probe.config["compress_ratios"]) > 1):
            break  # through several layers of simulated roundings some are undecided with any weights
    number, runs = best
    exact, baseline, *others = [run.taps["logits"] for run in (runs.exact, runs.baseline, *runs.nulls(number))]
    others += runs.nudged
    return Family(probe, runs.tensors, runs.ids, exact, baseline, others, runs.clear, simulation=simulation)


class _Runs:
    """A probe's tokens through the reference, exactly and in the probe's type."""

    def __init__(self, probe: Probe, tensors: dict[str, Tensor], ids: Tensor, simulation: str):
        self.probe, self.tensors, self.ids = probe, tensors, ids
        paths = oracle.decision_paths(probe.config)
        self.paths = {path: kind for path, kind in paths.items() if probe.mtp or path.startswith("layers.")}
        sides = (TorchSide(probe.config, options(simulation), tensors, dtype) for dtype in ("float64", probe.dtype))
        exact_side, self.side = sides
        exactly = lambda: oracle.observe(exact_side, lambda: self.run(exact_side), self.paths)  # noqa: E731
        read, self.exact = undecided.readings(exactly)
        self.replay = oracle.replayable(self.exact, self.paths)
        rounded = lambda: oracle.observe(self.side, lambda: self.run(self.side), self.paths, self.replay)  # noqa: E731
        read_rounded, self.baseline = undecided.readings(rounded)
        self.clear = _clear(probe, exact_side.model, self.exact, self.baseline, self.paths)
        self.nudged: list[Tensor] = []
        if read:
            self._nudge(exactly, undecided.noise_level(read, read_rounded))

    def _nudge(self, exactly: Callable, level: float) -> None:
        """Leave out tokens behind a rounding that may fall either way; where these are most, allow what it does."""
        nudged = [run.taps["logits"] for run in undecided.nudged_runs(exactly, level, seed=0)]
        decided = undecided.decided_rows(self.exact.taps["logits"], self.baseline.taps["logits"], nudged)[0]
        if (self.clear & decided).sum() >= DECIDED * self.clear.sum():
            self.clear &= decided
        else:
            self.nudged = nudged

    @property
    def quality(self) -> tuple[bool, int]:
        """Whether the limits are those of rounding alone, and how many tokens are judged."""
        return not self.nudged, int(self.clear.sum())

    def run(self, side: TorchSide) -> dict[str, Tensor]:
        return {"logits": forward(side.model, self.ids, self.probe.calls, self.probe.mtp)}

    def nulls(self, seed: int) -> list[oracle.Observation]:
        """The run in the probe's type, with other rounding."""
        return oracle.null_runs(self.side, lambda: self.run(self.side), self.paths, self.replay, self.probe.dtype, seed)


def forward(
    model, ids: Tensor, calls: tuple[int, ...], mtp: bool = False, around: Callable = lambda index: nullcontext()
) -> Tensor:
    """Logits [B, S, V] of one cacheless call, or of several that share a state; with `mtp`, the MTP block's, for which
    ids [B, S + 1] hold one token more. Each call runs in the context that `around` gives for its index."""
    state = model.new_state() if calls else None
    mtp_state = MTPState() if calls else None
    start, logits = 0, []
    for index, tokens in enumerate(calls or (ids.shape[1] - mtp,)):
        stop = start + tokens
        with around(index):
            if mtp:
                streams = model.streams(ids[:, start:stop], state)
                logits.append(model.mtp_logits(streams, ids[:, start + 1 : stop + 1], mtp_state))
            else:
                logits.append(model(ids[:, start:stop], state))
        start = stop
    return torch.cat(logits, dim=1)


def _clear(probe: Probe, model, exact: oracle.Observation, baseline: oracle.Observation, paths: dict) -> Tensor:
    """Tokens that every program that computes right gives the same experts and rows."""
    clear = torch.ones(ROWS, probe.tokens, dtype=torch.bool)
    for path, scores in exact.scores.items():
        if paths[path] == "table":
            continue
        module = oracle.taps.find(model, path)
        allowed, k = oracle.allowed_items(module, scores)
        if scores.shape[-1] <= k:
            continue
        truth, rounded = oracle.hidden_scores(module, path, [exact, baseline])
        noise = (rounded.double() - truth).abs().amax(-1)
        ranked = scores.double() + (module.bias.double() if hasattr(module, "bias") else 0)
        ranked = ranked.masked_fill(~allowed, -torch.inf).topk(k + 1, dim=-1)[0]
        gap = (ranked[..., k - 1] - ranked[..., k]).nan_to_num(nan=torch.inf)  # too few to choose from
        clear &= gap > CLEAR * torch.maximum(noise, noise[noise > 0].median() if (noise > 0).any() else noise)
    if len(probe.config["compress_ratios"]) > 1:  # later layers see earlier tokens
        clear = clear.cummin(1)[0]
    return clear
