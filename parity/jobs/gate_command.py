"""The command line that judges so again, and what its options may name."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from ..gate.lives import CACHES, OFFERED
from ..gate.probes import SCHEDULES, of_profile

TIMEOUT = 60.0  # seconds of processor time a call
MEMORY = 8.0  # GiB


def command(
    target: str,
    profile: str | None,
    seed: int | None,
    timeout: float,
    memory: float,
    require: Iterable[str],
    names: str = "any",
    strict: bool = False,
    mend: bool = False,
    only: Iterable[str] = (),
) -> str:
    """The command line that judges so again, as a shell needs it: people paste it, and names may be anything. One of a
    recording names no profile and seed."""
    words = ["parity", "gate", *(["--"] if target.startswith("-") else []), target]
    options = [] if profile is None else ["--profile", profile, "--seed", str(seed)]
    if timeout != TIMEOUT:
        options += ["--timeout", f"{timeout:g}"]
    if memory != MEMORY:
        options += ["--memory", f"{memory:g}"]
    for what in require:
        options += ["--require", what]
    if names != "any":
        options += ["--family", names]
    for what in only:
        options += ["--only", what]
    if strict:
        options += ["--strict"]
    options += ["--mend-imports"] * mend
    return shlex.join([*words[:2], *options, *words[2:]] if words[2] == "--" else [*words, *options])


def requirable() -> list[str]:
    """What --require may name: schedules and mechanisms."""
    return [*SCHEDULES, *(probe.mechanism for probe in of_profile("exhaustive")), CACHES] + [
        f"{CACHES}.{name}" for name in OFFERED
    ]
