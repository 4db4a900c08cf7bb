"""Probes: for each mechanism a tiny checkpoint whose weights make the logits depend on it, and on nothing unjudged.

A probe is one entry in the `PROBES` of a file here; the files stand in `FILES` in dependency order, and so do the rows
of the gate's matrix. What a probe cannot mute stands in its `needs`, which come before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from .weights import Weights

FILES = ("embedding", "experts", "attention", "rope", "compressor", "indexer", "hyper_connection", "packed", "model")
PROFILES = ("quick", "full", "exhaustive")
SCHEDULES = ("oneshot", "cached", "decode", "chunks", "batch")


@dataclass(frozen=True)
class Probe:
    """One mechanism made visible.

    config: raw keys. recipe: turns random weights into the probe's. tokens: sequence length. prompt: tokens of the
    first call under `decode`, or of the first two under `batch`; all later ones come one by one. chunks: tokens a call
    under `chunks`.
    profile: the first profile that runs it. calls: tokens a call of the reference's own run. mtp: whether the MTP
    block's logits are judged. beyond: why no published checkpoint needs it, where none does: a port that refuses to
    load it has a gap then, and one that deviates is right for what is published.
    """

    mechanism: str
    title: str
    spec: str
    config: dict
    recipe: Callable[[Weights], None]
    tokens: int
    prompt: int
    chunks: tuple[int, ...]
    needs: tuple[str, ...] = ()
    dtype: str = "float32"
    profile: str = "quick"
    schedules: tuple[str, ...] = SCHEDULES
    calls: tuple[int, ...] = ()
    mtp: bool = False
    beyond: str = ""

    def __post_init__(self):
        if sum(self.chunks) != self.tokens or (self.calls and sum(self.calls) != self.tokens):
            raise ValueError(f"the calls of probe {self.mechanism} do not add up to its {self.tokens} tokens.")

    def calls_of(self, schedule: str) -> tuple[int, ...]:
        """Tokens of each call."""
        if schedule == "chunks":
            return self.chunks
        decoded = [1] * (self.tokens - self.prompt)
        if schedule == "decode":
            return self.prompt, *decoded
        if schedule == "batch":
            return (half := self.prompt // 2), self.prompt - half, *decoded
        return (self.tokens,)

    def weights(self, seed: int) -> dict:
        """The probe's raw-named tensors."""
        weights = Weights(self.config, seed)
        self.recipe(weights)
        return weights.tensors


@cache
def registry() -> dict[str, Probe]:
    """All probes by mechanism, in dependency order."""
    probes: dict[str, Probe] = {}
    for name in FILES:
        for probe in import_module(f"{__name__}.{name}").PROBES:
            missing = [need for need in probe.needs if need not in probes]
            if probe.mechanism in probes or missing:
                raise ValueError(f"probe {probe.mechanism} stands twice, or before what it needs ({missing}).")
            probes[probe.mechanism] = probe
    return probes


def of_profile(profile: str) -> list[Probe]:
    """The probes that a profile runs."""
    return [p for p in registry().values() if PROFILES.index(p.profile) <= PROFILES.index(profile)]


@cache
def needed(mechanism: str) -> frozenset[str]:
    """Everything that a probe builds on, at any depth."""
    needs = registry()[mechanism].needs
    return frozenset(needs).union(*(needed(need) for need in needs))
