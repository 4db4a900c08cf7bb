"""Lives of a port's caches, drawn at random; a broken one is cut down to what it takes to break it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    "serve_batches": ("mlx-lm's batches", "D013, D043, D045, D046, D055"),
    "serve_steps": ("mlx-lm's generator", "D014, D033 to D038, D048, D054, D060, D061, D094"),
    "serve_turns": ("mlx-lm's store of prompts", "D046, D047, D092, D093, D096"),
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
FIXED = (RAGGED, GENERATION)


def explore(
    lives: Lives, sequences: int, operations: int, seed: int, shrink: bool = True, fixed: Sequence[list] = ()
) -> Lives:
    """So many random lives, the same ones at every run, then the fixed ones; a broken life is made shorter, if
    asked."""
    if sequences:
        _draw(lives, sequences, operations, seed)
    for life in fixed:
        if lives.broken is None:
            relive(lives, life)
    if shrink and lives.broken is not None:
        lives.broken = shorter(lives.port, lives.without, lives.broken)
    return lives


def _draw(lives: Lives, sequences: int, operations: int, seed: int) -> None:
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
        if again is None or again.raised != broken.raised:  # another fault is no shorter form of this one
            return False
        broken = again
        return True

    while any([_fewer(broken, better), _smaller(lambda: broken, better, ("which", "other", "row"))]):
        pass
    _smaller(lambda: broken, better, ("prompts", "prompt", "shared", "more", "again", "tokens", "counts", "padding"))
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
    """Whether one of these arguments could be smaller: a number the smallest that does, of a list what it needs."""
    found = False
    for index, (_, given) in enumerate(current().operations):
        for argument in arguments:
            for change in _below(given[argument]) if argument in given else ():
                operations = [*current().operations]
                if index >= len(operations):
                    return found
                name, now = operations[index]
                operations[index] = (name, now | {argument: change(now[argument])})
                if now[argument] != operations[index][1][argument] and better(operations):
                    found = True
                    if not isinstance(now[argument], list):
                        break
    return found


def _below(value) -> list[Callable]:
    """Changes that make it smaller: a number in one step, the largest first; a list number by number, the last one
    first."""
    if isinstance(value, int):
        return [lambda _, n=n: n for n in sorted({0, 1, value // 2, value - 1}) if 0 <= n < value]
    if not all(isinstance(n, int) for n in value):
        return []
    return [lambda now, i=i: [0 if i == j else n for j, n in enumerate(now)] for i in reversed(range(len(value)))]


def check(port: Port, sequences: int, operations: int = 30, shrink: bool = True):
    """Raises AssertionError with the shortest life found after which the port deviates; the same lives at every run."""
    broken = explore(Lives(port), sequences, operations, seed=0, shrink=shrink).broken
    if broken is not None:
        raise AssertionError(f"{broken.sentence}.")
