"""Tokens through the whole reference: exactly, in the run's type, with other rounding; and which of them are clear."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from reference_torch import MTPState

from . import noise, oracle, undecided
from .rounding import OtherRounding
from .sides import TorchSide
from .tolerance import rms

# A choice is clear where the gap at its cut is this many times what rounding is seen to move the scores by.
CLEAR = 8.0
# On a device the errors are seen in several runs, so that their largest is nearer to the largest there may be.
CLEAR_ON_DEVICE = 4.0
DECIDED = 0.25  # of the clear tokens must hang on no simulated rounding for them alone to be judged


def options(simulation: str) -> dict:
    """The reference's options where it simulates these roundings."""
    return {"quantization_simulation": simulation}


class Runs:
    """Ids [B, S], one token more where the MTP block reads, through the reference of a raw config and raw tensors.

    exact, baseline: observations whose tap "logits" is [B, S, V]. clear [B, S]: tokens that no unclear choice of
    experts or rows reaches, nor an unclear rounding where the reference simulates roundings. nudged: logits of exact
    runs with undecided roundings moved, where too many tokens hang on them to leave those out.
    """

    def __init__(
        self,
        config: dict,
        tensors: dict[str, Tensor],
        ids: Tensor,
        dtype: str,
        simulation: str = "none",
        calls: tuple[int, ...] = (),
        mtp: bool = False,
    ):
        self.config, self.tensors, self.ids, self.dtype = config, tensors, ids, dtype
        self.calls, self.mtp = calls, mtp
        paths = oracle.decision_paths(config)
        self.paths = {path: kind for path, kind in paths.items() if mtp or path.startswith("layers.")}
        sides = (TorchSide(config, options(simulation), tensors, one) for one in ("float64", dtype))
        exact_side, self.side = sides
        exactly = lambda: oracle.observe(exact_side, lambda: self.run(exact_side), self.paths)  # noqa: E731
        read, self.exact = undecided.readings(exactly)
        self.replay = oracle.replayable(self.exact, self.paths)
        rounded = lambda: oracle.observe(self.side, lambda: self.run(self.side), self.paths, self.replay)  # noqa: E731
        read_rounded, self.baseline = undecided.readings(rounded)
        # A device's errors move scores by more than the baseline shows.
        off = self._nulls(0) if noise.active() else []
        self.clear = self._clear(exact_side.model, [self.baseline, *off])
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
        return {"logits": forward(side.model, self.ids, self.calls, self.mtp)}

    def logits(self, seed: int) -> list[Tensor]:
        """Logits [B, S, V] of the exact run, the baseline, and the null: the baseline with other rounding, and what is
        nudged."""
        return [run.taps["logits"] for run in (self.exact, self.baseline, *self._nulls(seed))] + self.nudged

    def _nulls(self, seed: int) -> list[oracle.Observation]:
        return oracle.null_runs(self.side, lambda: self.run(self.side), self.paths, self.replay, self.dtype, seed)

    def dominant(self, seed: int) -> str:
        """Which of the device's errors moves the logits most, in words; empty where other rounding does as much."""

        def moved(one: noise.DeviceNoise) -> float:
            with noise.on_device(one), OtherRounding(seed * 16, False):
                logits = oracle.observe(self.side, lambda: self.run(self.side), self.paths, self.replay).taps["logits"]
            return rms(logits.double() - self.exact.taps["logits"])

        sources = {"": noise.DeviceNoise({}), **noise.active().alone()}
        by_size = {name: moved(one) for name, one in sources.items()}
        return max(by_size, key=by_size.get)

    def _clear(self, model, rounded: list[oracle.Observation]) -> Tensor:
        """Tokens that every program that computes right gives the same experts and rows."""
        clear = torch.ones(len(self.ids), self.ids.shape[1] - self.mtp, dtype=torch.bool)
        for path in self.exact.scores:
            if self.paths[path] == "table":
                continue
            clear &= clear_choices(oracle.taps.find(model, path), path, self.exact, rounded)
        if len(self.config["compress_ratios"]) > 1:  # later layers see earlier tokens
            clear = clear.cummin(1)[0]
        return clear


def clear_choices(module, path: str, exact: oracle.Observation, rounded: list[oracle.Observation]) -> Tensor:
    """Tokens [B, S] whose choice of experts or rows in this module no rounding decides."""
    scores = exact.scores[path]
    allowed, k = oracle.allowed_items(module, scores)
    if scores.shape[-1] <= k:
        return torch.ones(scores.shape[:2], dtype=torch.bool)
    truth, *others = oracle.hidden_scores(module, path, [exact, *rounded])
    noise = torch.stack([(one.double() - truth).abs().amax(-1) for one in others]).amax(0)
    ranked = scores.double() + (module.bias.double() if hasattr(module, "bias") else 0)
    ranked = ranked.masked_fill(~allowed, -torch.inf).topk(k + 1, dim=-1)[0]
    gap = (ranked[..., k - 1] - ranked[..., k]).nan_to_num(nan=torch.inf)  # too few to choose from
    margin = CLEAR if len(others) == 1 else CLEAR_ON_DEVICE
    return gap > margin * torch.maximum(noise, noise[noise > 0].median() if (noise > 0).any() else noise)


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
