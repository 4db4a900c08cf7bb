"""Filling the matrix: every probe's reference, then the candidate, held to the published roundings that it simulates
(spec 12.7)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from reference_torch.config import QUANTIZATION_SIMULATIONS

from ..judging.noise import DeviceNoise, active
from . import loading
from .families import Family, family
from .matrix import Engine, Matrix, judge_probe
from .probes import Probe

# From no rounding to all: a port may simulate those of its caches, and leave to the products those of their inputs.
LADDER = QUANTIZATION_SIMULATIONS
SAID = {
    "rows": "those of key-value rows and of the indexer",
    "published": "those of key-value rows, of the indexer, and of what packed matrices read",
}
# The first probe whose logits such roundings change, with plain weights.
FIRST = {"rows": "attention.window", "published": "weights.fp8"}
KNOWN: dict[tuple[str, int, str, str, DeviceNoise | None], Family] = {}


def reference(probe: Probe, seed: int, form: str = loading.PLAIN, simulation: str = "none") -> Family:
    """The probe's reference runs, kept: a run over many candidates needs them again."""
    if probe.config["index_head_dim"] & (probe.config["index_head_dim"] - 1):
        simulation = LADDER[0]  # no published indexer has such a side, which its Hadamard rotation cannot take
    key = probe.mechanism, seed, form, simulation, active()
    if key not in KNOWN:
        KNOWN[key] = family(loading.in_form(probe, form), seed, simulation)
    return KNOWN[key]


def shown_first(simulation: str, form: str) -> str:
    """The first mechanism that tells whether a candidate simulates this much."""
    return "experts.shared" if simulation == "published" and form == loading.PACKED else FIRST[simulation]


@dataclass
class Filling:
    """The probes of one run: in whose names and which form they are written, which roundings the reference simulates.

    simulation: one of the ladder; with "auto" it starts without any, and goes a step up for good where the first probe
    that shows this step is greener with it.
    """

    engine: Engine
    matrix: Matrix
    seed: int
    spelling: str
    form: str
    simulation: str
    folder: Path
    clock: dict
    auto: bool = field(init=False)

    def __post_init__(self):
        self.auto = self.simulation == "auto"
        if self.auto:
            self.simulation = LADDER[0]

    def fill(self, probes: list[Probe], progress: Callable[[str], None]) -> dict[str, Family]:
        """Judge the probes; their references."""
        families = {}
        self.clock |= {"reference_s": 0.0, "candidate_s": 0.0}
        for index, probe in enumerate(probes, start=1):
            progress(f"{index} of {len(probes)}: {probe.mechanism}")
            families[probe.mechanism] = self._judge(probe)
        return families

    def notes(self) -> list[str]:
        """What the reference simulated, where it did."""
        if self.simulation == LADDER[0]:
            return []
        seen = "Simulates published roundings" if self.auto else "Held to published roundings"
        return [f"{seen}, {SAID[self.simulation]}: judged against the reference that does the same."]

    def _judge(self, probe: Probe) -> Family:
        found = self._tried(probe, self.simulation, self.matrix)
        for step in LADDER[LADDER.index(self.simulation) + 1 :] if self.auto else ():
            if probe.mechanism == shown_first(step, self.form) and self.matrix.red(probe.mechanism):
                trial = Matrix()
                other = self._tried(probe, step, trial)
                if len(trial.red(probe.mechanism)) < len(self.matrix.red(probe.mechanism)) and trial.logits:
                    self.simulation, found = step, other
                    self.matrix.replace(probe.mechanism, trial)
        return found

    def _tried(self, probe: Probe, simulation: str, matrix: Matrix) -> Family:
        """Judge the probe with a reference that simulates this much."""
        began = time.monotonic()
        found = replace(reference(probe, self.seed, self.form, simulation), spelling=self.spelling)
        prepared = time.monotonic()
        judge_probe(self.engine, found, self.folder / probe.mechanism, matrix)
        self.clock["reference_s"] = round(self.clock["reference_s"] + prepared - began, 2)
        self.clock["candidate_s"] = round(self.clock["candidate_s"] + time.monotonic() - prepared, 2)
        return found
