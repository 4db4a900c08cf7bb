"""Lives of a port's caches, drawn at random; a broken one is cut down to what it takes to break it."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.stateful import run_state_machine_as_test

from .port import Broken, Lives, Port
from .state_machine import CacheMachine

MOST_RELIVED = 250  # lives in search of a shorter one
CALL = ("prefill", {"which": 0, "tokens": 9, "seed": 0})
# Known defects by the operation that shows them; a life without any of these has nothing but calls.
SHOWN_BY = {
    "trim": ("rewinding", "D047, D096"),
    "save_and_restore": ("saving and restoring", "D046"),
    "weigh": ("weighing by nbytes", "D093"),
    "branch": ("copying", "D046"),
    "merge": ("merging", "D013, D043, D046, D055"),
    "extract": ("extracting", "D046"),
    "filter": ("filtering", "D045"),
    "extend": ("extending", "D046"),
    "ragged": ("padded calls of a batch", "D013, D043, D055"),
    "new": ("one cache beside another", "D092"),
    "generate": ("a long generation", "D094"),
}
CALLS = "D014, D033 to D038, D044, D048, D050, D054 to D056, D060, D061, D067"


def sort_of(operations: list[tuple[str, dict]]) -> str:
    """What a life takes beside calls, and which known defects show so: a hint, no diagnosis."""
    done = {name for name, _ in operations}
    if "merge" in done:  # another cache is what it merges
        done -= {"new"}
    found = [SHOWN_BY[name] for name in SHOWN_BY if name in done]
    if not found:
        return f"it takes nothing but calls (compare {CALLS})"
    return f"it takes {', '.join(f'{words} (compare {known})' for words, known in found)}"


# Past a block of 128 tokens, so that what waits for a block's last one has just been computed.
GENERATION = [("generate", {"prompt": 132, "tokens": 132})]

# Two sequences of different length in one batch, as mlx-lm makes it: one offset for all rows is wrong there.
RAGGED = [
    ("first", {"tokens": 9, "seed": 0}),
    ("new", {"tokens": 5, "seed": 1}),
    ("merge", {"which": [0, 1]}),
    ("decode", {"which": 2, "tokens": 4, "seed": 2}),
    ("prefill", {"which": 2, "tokens": 7, "seed": 3}),
]


def explore(
    lives: Lives, sequences: int, operations: int, seed: int, shrink: bool = True, generation: bool = False
) -> Lives:
    """So many random lives, the same ones at every run, then where asked a batch of unequal sequences and a long
    generation; a broken life is made shorter, if asked."""
    wanted = settings(
        max_examples=sequences,
        stateful_step_count=operations,
        deadline=None,
        database=None,
        verbosity=Verbosity.quiet,
        phases=(Phase.generate,),
        report_multiple_bugs=False,
        suppress_health_check=[*HealthCheck],
    )
    kind = hypothesis.seed(seed)(type("CacheMachine", (CacheMachine,), {"lives": lives}))
    try:
        run_state_machine_as_test(kind, settings=wanted)
    except Exception:
        if lives.broken is None:
            raise
    for life in (RAGGED, GENERATION) if generation else ():
        if lives.broken is None:
            relive(lives, life)
    if shrink and lives.broken is not None:
        lives.broken = shorter(lives.port, lives.without, lives.broken)
    return lives


def relive(lives: Lives, operations: list[tuple[str, dict]]) -> Lives:
    """One life again, operation by operation."""
    machine = type("CacheMachine", (CacheMachine,), {"lives": lives})()
    try:
        for name, given in operations:
            getattr(machine, name)(**given)
    except Exception:
        if lives.broken is None:
            raise
    return lives


def shorter(port: Port, without: frozenset[str], broken: Broken) -> Broken:
    """The same port's shortest broken life that is found by leaving out operations, then by smaller numbers.

    Each try has a fresh port, so that it breaks by itself; a life that does not is as short as it gets.
    """
    known: dict[tuple, object] = {}
    tries = 0

    def better(operations: list[tuple[str, dict]]) -> bool:
        nonlocal broken, tries
        tries += 1
        again = relive(Lives(port.renewed(), without, known=known), operations).broken if tries < MOST_RELIVED else None
        broken = again or broken
        return again is not None

    while any([_fewer(broken, better), _smaller(lambda: broken, better, ("which", "other", "row"))]):
        pass
    _smaller(lambda: broken, better, ("tokens", "counts", "padding"))
    tries = 0
    for index in range(1, len(broken.operations)):
        if broken.operations[index][0] in SHOWN_BY:  # what follows it are calls: do they do?
            better([*broken.operations[:index], CALL, *broken.operations[index + 1 :]])
    return broken


def _fewer(broken: Broken, better: Callable[[list], bool]) -> bool:
    """Whether an operation could be left out; the last ones first, as what comes before makes the caches."""
    operations, index, found = [*broken.operations], len(broken.operations) - 1, False
    while index > 0:
        rest = operations[:index] + operations[index + 1 :]
        if better(rest):
            operations, found = rest, True
        index -= 1
    return found


def _smaller(current: Callable[[], Broken], better: Callable[[list], bool], arguments: tuple[str, ...]) -> bool:
    """Whether one of these arguments could be smaller."""
    found = False
    for index, (name, given) in enumerate(current().operations):
        for argument in arguments:
            for value in _below(given[argument]) if argument in given else ():
                operations = [*current().operations]
                if index >= len(operations):
                    return found
                operations[index] = (name, operations[index][1] | {argument: value})
                if better(operations):
                    found = True
                    break
    return found


def _below(value) -> list:
    """Smaller values, the smallest first; of a list, those with one number left."""
    if isinstance(value, int):
        return sorted({n for n in (0, 1, value // 2, value - 1) if 0 <= n < value})
    if sum(isinstance(n, int) for n in value) < len(value) or sum(map(bool, value)) < 2:
        return []
    return [[n if i == j else 0 for j, n in enumerate(value)] for i in range(len(value)) if value[i]]


def check(port: Port, sequences: int, operations: int = 30, shrink: bool = True):
    """Raises AssertionError with the shortest life found after which the port deviates; the same lives at every run."""
    broken = explore(Lives(port), sequences, operations, seed=0, shrink=shrink).broken
    if broken is not None:
        raise AssertionError(f"{broken.sentence}.")
