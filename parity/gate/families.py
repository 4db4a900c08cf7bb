"""A probe's reference: its checkpoint, its tokens, and the runs that a candidate's logits are measured against."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType

import torch
from safetensors.torch import save_file
from torch import Tensor

from reference_torch import Decoded, checkpoint

from ..judging import noise
from ..judging.runs import Runs, options
from ..judging.sides import TorchSide
from ..judging.tolerance import Measurement, measure, rms
from .probes import Probe

ROWS = 2  # sequences under `batch`; the other schedules feed the first one
SEEDS = 6  # how many draws of the weights are tried for one in which every choice is clear


@dataclass
class Family:
    """A probe's runs in the reference, one shot, on `ids` [ROWS, tokens], one token more where the MTP block reads.

    clear [ROWS, tokens]: tokens that no unclear choice of experts or rows reaches, nor an unclear rounding where the
    reference simulates roundings. Only these are judged. dominant: on a device that is noisier than other rounding,
    which of its errors makes the null as large as it is.
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
    dominant: str = ""
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
        return runs(self.probe, self.tensors, self.ids, self.simulation).clear


def runs(probe: Probe, tensors: dict[str, Tensor], ids: Tensor, simulation: str) -> Runs:
    """A probe's tokens through the reference, exactly and in the probe's type."""
    return Runs(probe.config, tensors, ids, probe.dtype, simulation, probe.calls, probe.mtp)


def family(probe: Probe, seed: int, simulation: str = "none") -> Family:
    """The probe with the first weights, from `seed` on, in which every choice is clear; else those with most clear
    tokens. `simulation`: which published roundings the reference simulates."""
    best = None
    for attempt in range(SEEDS):
        number = seed * 1000 + attempt
        random = torch.Generator().manual_seed(number)
        ids = torch.randint(0, probe.config["vocab_size"], (ROWS, probe.tokens + probe.mtp), generator=random)
        found = runs(probe, probe.weights(number), ids, simulation)
        if best is None or found.quality > best[1].quality:
            best = number, found
        if found.quality == (True, found.clear.numel()) or (found.nudged and len(probe.config["compress_ratios"]) > 1):
            break  # through several layers of simulated roundings some are undecided with any weights
    number, found = best
    exact, baseline, *others = found.logits(number)
    dominant = found.dominant(number) if noise.active() else ""
    given = probe, found.tensors, found.ids, exact, baseline, others, found.clear
    return Family(*given, simulation=simulation, dominant=dominant)
