"""How a candidate is judged, the command line that judges so again, and what its options may name."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from reference_torch.config import QUANTIZATION_SIMULATIONS

from ..errors import BadInput
from ..gate.lives import CACHES, OFFERED, ROWS, SERVED
from ..gate.probes import SCHEDULES, of_profile, registry

SIMULATIONS = ("auto", *QUANTIZATION_SIMULATIONS)
DEFAULTS = {"profile": "quick", "seed": 0, "names": "any", "simulation": "auto"}
OPTIONS = {"names": "--family"}  # where an option is called otherwise


@dataclass(frozen=True)
class Asked:
    """What is asked of a judgement; the first four are `DEFAULTS` where they are None, or what was recorded.

    names: "raw" where the candidate must load the published ones, "any" where those of a conversion will do.
    simulation: the published roundings that it is held to, "none", of "rows" and the indexer, or all "published"; with
    "auto" those that it is seen to simulate. require: schedules and mechanisms that it must offer. only: these
    mechanisms and what their probes need. strict: what no published checkpoint needs counts too. mend: supply the names
    of `typing` and the like that it lacks, a note each. timeout: seconds of processor time a call. memory: GiB.
    """

    profile: str | None = None
    seed: int | None = None
    names: str | None = None
    simulation: str | None = None
    require: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    strict: bool = False
    mend: bool = False
    timeout: float = 60.0
    memory: float = 8.0

    def settled(self, recorded: dict | None = None) -> Asked:
        """With what stands for None: the defaults, or what was recorded. Raises BadInput where a recording was made
        otherwise."""
        known = recorded or DEFAULTS
        for name in DEFAULTS:
            option, asked = OPTIONS.get(name, f"--{name}"), getattr(self, name)
            if asked not in (None, known[name]) and recorded:
                raise BadInput(f"The recording was made with {option} {known[name]}; leave {option} {asked} away.")
        settled = replace(self, **{name: known[name] for name in DEFAULTS if getattr(self, name) is None})
        if recorded:
            require = tuple(dict.fromkeys([*recorded["require"], *self.require]))
            settled = replace(settled, require=require, only=self.only or tuple(recorded["only"]))
        return settled

    @property
    def settings(self) -> dict:
        """What a recording keeps of it."""
        return {name: getattr(self, name) for name in (*DEFAULTS, "require", "only")}

    def command(self, target: str, recorded: bool = False) -> str:
        """The command line that judges so again, as a shell needs it: people paste it, and names may be anything. A
        recording has its own settings."""
        options = []
        if not recorded:
            options += ["--profile", self.profile, "--seed", str(self.seed)]
            options += ["--timeout", f"{self.timeout:g}"] * (self.timeout != Asked.timeout)
            options += ["--memory", f"{self.memory:g}"] * (self.memory != Asked.memory)
        for what in self.require:
            options += ["--require", what]
        if not recorded:
            options += ["--family", self.names] * (self.names != DEFAULTS["names"])
            options += ["--simulation", self.simulation] * (self.simulation != DEFAULTS["simulation"])
        for what in self.only:
            options += ["--only", what]
        options += ["--strict"] * self.strict + ["--mend-imports"] * (self.mend and not recorded)
        named = [*options, "--", target] if target.startswith("-") else [target, *options]
        return shlex.join(["parity", "gate", *named])


def judgeable() -> list[str]:
    """What --only may name: mechanisms and rows of lives."""
    return [*registry(), *ROWS]


def requirable() -> list[str]:
    """What --require may name: schedules and mechanisms."""
    return [*SCHEDULES, *(probe.mechanism for probe in of_profile("exhaustive")), CACHES, *SERVED] + [
        f"{CACHES}.{name}" for name in OFFERED
    ]
