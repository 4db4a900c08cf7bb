"""Random lives of a cache: whatever was done to it, the next tokens must come out as one call without it gives them.

For any model that keeps mlx-lm's contract: `model(ids, cache=...)`, entries with `is_trimmable`, `trim` and `state`,
and, where batches are offered, `merge`, `extract`, `filter`, `extend`, `prepare` and `finalize`.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from mlx.utils import tree_map
from mlx_lm.models import cache as mlx_lm_cache

LONGEST = 180  # tokens a sequence: beyond a block of 128 and all that the rings of a tiny window hold
SESSIONS = 4  # caches alive at once
ROWS = 6  # sequences of a batch
DRAFT = 16  # tokens that any cache that calls itself trimmable must take back

# A difference that rounding cannot make at this size is looked at twice: relative to the logits' spread, a type.
NEAR = {mx.float32: 1e-4, mx.bfloat16: 2e-2, mx.float16: 4e-3}
# Weights moved by one rounding move the logits as another order of summation does; runs of them tell how far, and
# where a choice of experts or rows hangs by a rounding, they show it.
ROUNDING = {mx.float32: 2.0**-23, mx.bfloat16: 2.0**-8, mx.float16: 2.0**-11}
NOISE_RUNS, NOISE_FACTOR = 4, 20


@dataclass
class Port:
    """A model under test. ``reference``: ids [1, S] -> logits [1, S, V] in the same type; its own, cacheless."""

    model: object
    vocabulary: int
    make_cache: Callable[[], list] | None = None
    reference: Callable[[mx.array], mx.array] | None = None
    dtype: mx.Dtype = mx.float32

    def fresh(self) -> list:
        make = self.make_cache or (lambda: mlx_lm_cache.make_prompt_cache(self.model))
        return make()

    def expected(self, ids: list[int]) -> mx.array:
        """Logits [S, V] of one call over all tokens."""
        reference = self.reference or self.model
        return reference(mx.array([ids]))[0]

    def noise(self, ids: list[int], expected: mx.array) -> mx.array:
        """How far rounding alone moves the logits of each token: [S, 1]."""
        weights = self.model.parameters()
        found = []
        try:
            for run in range(NOISE_RUNS):
                self.model.update(tree_map(functools.partial(self._moved, mx.random.key(run)), weights))
                found.append(mx.abs(self.model(mx.array([ids]))[0] - expected).max(axis=-1, keepdims=True))
                mx.eval(found)
        finally:
            self.model.update(weights)
        return mx.stack(found).max(axis=0)

    def _moved(self, key: mx.array, weight: mx.array) -> mx.array:
        if not mx.issubdtype(weight.dtype, mx.floating):
            return weight
        signs = mx.where(mx.random.bernoulli(shape=weight.shape, key=key), 1.0, -1.0)
        return (weight * (1 + ROUNDING[self.dtype] * signs)).astype(weight.dtype)


@dataclass
class Sequence:
    """Tokens that a cache has seen, and the most that it ever had, before it was rewound."""

    ids: list[int] = field(default_factory=list)
    reach: int = 0

    def extend(self, ids: list[int]):
        self.ids = self.ids + ids
        self.reach = max(self.reach, len(self.ids))


@dataclass
class Session:
    """One cache and its sequences. ``batched``: it came from a merge, so it has the batch forms. ``done``: its life."""

    cache: list
    rows: list[Sequence]
    batched: bool = False
    done: list[str] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        return [len(row.ids) for row in self.rows]

    def copied_rows(self) -> list[Sequence]:
        return [copy.copy(row) for row in self.rows]

    def offered(self, *names: str) -> bool:
        return all(hasattr(entry, name) for entry in self.cache for name in names)


class CacheMachine(RuleBasedStateMachine):
    """Sessions that come, go, mix and branch; `port` is set by `machine`."""

    port: Port

    def __init__(self):
        super().__init__()
        self.sessions: list[Session] = []

    # --- helpers, not rules ----------------------------------------------------------------------------------

    def pick(self, which: int) -> Session:
        return self.sessions[which % len(self.sessions)]

    def keep(self, session: Session):
        self.sessions = [*self.sessions, session][-SESSIONS:]
        self.probe(session)

    def feed(self, session: Session, counts: list[int], seed: int, padding: int = 0, left: bool = False):
        """The next counts[i] tokens of each sequence, then the comparison."""
        random = np.random.default_rng(seed)
        new = [random.integers(0, self.port.vocabulary, n).tolist() for n in counts]
        width = max(counts) + padding
        filling = [random.integers(0, self.port.vocabulary, width - n).tolist() for n in counts]
        padded = [len(pad) for pad in filling]
        if any(padded):
            announced = {"left_padding": padded} if left else {"lengths": counts, "right_padding": padded}
            for entry in session.cache:
                entry.prepare(**announced)
        ids = [pad + real if left else real + pad for pad, real in zip(filling, new, strict=True)]
        logits = self.port.model(mx.array(ids), cache=session.cache)
        if any(padded):
            for entry in session.cache:
                entry.finalize()
        for i, (row, real, pad) in enumerate(zip(session.rows, new, padded, strict=True)):
            row.extend(real)
            if real:
                got = logits[i, pad:] if left else logits[i, : len(real)]
                self.compare(session, i, got, len(real))

    def compare(self, session: Session, i: int, got: mx.array, new: int):
        """Raises AssertionError where logits [new, V] of sequence i differ by more than rounding explains."""
        row = session.rows[i].ids
        expected = self.port.expected(row)
        spread = mx.sqrt(mx.var(expected.astype(mx.float32))).item()
        distance = mx.abs(got - expected[-new:]).max(axis=-1)
        worst = distance.max().item()
        if worst <= NEAR[self.port.dtype] * spread:
            return
        limit = NOISE_FACTOR * self.port.noise(row, expected)[-new:, 0] + NEAR[self.port.dtype] * spread
        wrong = [token for token, bad in enumerate((~(distance <= limit)).tolist()) if bad]
        if wrong:
            at = len(row) - new + wrong[0]
            raise AssertionError(
                f"After {', '.join(session.done) or 'nothing'}: sequence {i} of {len(session.rows)}, token {at} of "
                f"{len(row)}: logits are off by {distance[wrong[0]].item():.2g}; rounding explains "
                f"{limit[wrong[0]].item():.2g}."
            )

    def probe(self, session: Session):
        """What comes next, on a copy: one token, then enough of them to complete blocks."""
        session = Session(copy.deepcopy(session.cache), session.copied_rows(), session.batched, session.done)
        for tokens in (1, 9):
            if self.room(session, tokens) == tokens:
                self.feed(session, [tokens] * len(session.rows), seed=tokens)

    def room(self, session: Session, tokens: int) -> int:
        return min(tokens, LONGEST - max(session.lengths))

    # --- rules -------------------------------------------------------------------------------------------------

    @initialize(
        tokens=st.lists(st.one_of(st.integers(0, 9), st.integers(0, 140)), min_size=2, max_size=2),
        seed=st.integers(0, 2**32 - 1),
    )
    def first(self, tokens, seed):
        for n in tokens:
            self.keep(Session(self.port.fresh(), [Sequence()]))
            self.prefill(-1, n, seed)

    @rule()
    def new(self):
        self.keep(Session(self.port.fresh(), [Sequence()]))

    @rule(
        which=st.integers(0, SESSIONS - 1),
        tokens=st.one_of(st.integers(1, 12), st.integers(1, 140)),
        seed=st.integers(0, 2**32 - 1),
    )
    def prefill(self, which, tokens, seed):
        """One call of any length: a prompt, a chunk, a draft."""
        session = self.pick(which)
        tokens = self.room(session, tokens)
        if tokens > 0:
            session.done.append(f"{tokens} tokens")
            self.feed(session, [tokens] * len(session.rows), seed)

    @rule(which=st.integers(0, SESSIONS - 1), tokens=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
    def decode(self, which, tokens, seed):
        """Token by token."""
        session = self.pick(which)
        for step in range(self.room(session, tokens)):
            session.done.append("1 token")
            self.feed(session, [1] * len(session.rows), (seed + step) % 2**32)

    @rule(which=st.integers(0, SESSIONS - 1), tokens=st.one_of(st.integers(0, DRAFT), st.integers(0, 60)))
    def trim(self, which, tokens):
        """As mlx-lm does it; what says that it is trimmable must take back a draft, or refuse and stay as it is."""
        session = self.pick(which)
        if not mlx_lm_cache.can_trim_prompt_cache(session.cache):
            return
        tokens = min(tokens, *session.lengths)
        try:
            taken = mlx_lm_cache.trim_prompt_cache(session.cache, tokens)
        except ValueError:
            back = max(row.reach - len(row.ids) + tokens for row in session.rows)
            assert back > DRAFT, f"A rewind of {tokens} tokens, {back} with those before, was refused."
            session.done.append(f"refused to trim {tokens}")
            self.probe(session)
            return
        assert taken == tokens, f"trim({tokens}) of sequences of {session.lengths} tokens gave {taken}."
        session.done.append(f"trimmed {tokens}")
        for row in session.rows:
            row.ids = row.ids[: len(row.ids) - tokens]
        self.probe(session)

    @rule(which=st.integers(0, SESSIONS - 1))
    def save_and_restore(self, which):
        session = self.pick(which)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "cache.safetensors")
            mlx_lm_cache.save_prompt_cache(path, session.cache)
            session.cache = mlx_lm_cache.load_prompt_cache(path)
            mx.eval([entry.state for entry in session.cache])
        session.done.append("saved and restored")
        self.probe(session)

    @rule(which=st.integers(0, SESSIONS - 1))
    def branch(self, which):
        session = self.pick(which)
        cache = copy.deepcopy(session.cache)
        self.keep(Session(cache, session.copied_rows(), session.batched, [*session.done, "copied"]))

    @rule(which=st.lists(st.integers(0, SESSIONS - 1), min_size=1, max_size=3))
    def merge(self, which):
        """Single sequences become a batch; they themselves live on."""
        chosen = [session for session in map(self.pick, which) if not session.batched]
        if not chosen or not all(session.offered("merge") for session in chosen):
            return
        cache = [entries[0].merge([*entries]) for entries in zip(*(s.cache for s in chosen), strict=True)]
        done = [f"merged ({'; '.join(', '.join(s.done) or 'nothing' for s in chosen)})"]
        self.keep(Session(cache, [session.copied_rows()[0] for session in chosen], True, done))

    @precondition(lambda self: any(session.batched for session in self.sessions))
    @rule(
        which=st.integers(0, SESSIONS - 1),
        counts=st.lists(st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 140)), min_size=ROWS, max_size=ROWS),
        padding=st.sampled_from([0, 0, 1, 5]),
        left=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )
    def ragged(self, which, counts, padding, left, seed):
        """A call with as many tokens of each sequence as it likes, padded; on the left only from the start on."""
        session = self.pick(which)
        if not session.batched or not session.offered("prepare", "finalize"):
            return
        counts = [min(n, LONGEST - seen) for n, seen in zip(counts, session.lengths, strict=False)]
        left = left and not any(row.reach for row in session.rows)
        if max(counts) + padding > 0:
            session.done.append(f"padded {'left' if left else 'right'} {counts}+{padding}")
            self.feed(session, counts, seed, padding, left)

    @rule(which=st.integers(0, SESSIONS - 1), row=st.integers(0, ROWS - 1))
    def extract(self, which, row):
        session = self.pick(which)
        if session.batched and session.offered("extract"):
            row %= len(session.rows)
            cache = [entry.extract(row) for entry in session.cache]
            self.keep(Session(cache, [session.copied_rows()[row]], False, [*session.done, f"extracted {row}"]))

    @rule(which=st.integers(0, SESSIONS - 1), keep=st.lists(st.booleans(), min_size=ROWS, max_size=ROWS))
    def filter(self, which, keep):
        session = self.pick(which)
        kept = [row for row in range(len(session.rows)) if keep[row]]
        if session.batched and session.offered("filter") and kept:
            for entry in session.cache:
                entry.filter(kept)
            session.rows = [session.rows[row] for row in kept]
            session.done.append(f"filtered {kept}")
            self.probe(session)

    @rule(which=st.integers(0, SESSIONS - 1), other=st.integers(0, SESSIONS - 1))
    def extend(self, which, other):
        """A batch takes another in, which is gone then."""
        session, other = self.pick(which), self.pick(other)
        fits = len(session.rows) + len(other.rows) <= ROWS
        if session is other or not (session.batched and other.batched and fits and session.offered("extend")):
            return
        for entry, added in zip(session.cache, other.cache, strict=True):
            entry.extend(added)
        session.rows += other.rows
        session.done.append(f"extended by ({', '.join(other.done)})")
        self.sessions = [s for s in self.sessions if s is not other]
        self.probe(session)


def machine(port: Port) -> type[CacheMachine]:
    """The state machine of this port."""
    return type("CacheMachine", (CacheMachine,), {"port": port})


def check(port: Port, sequences: int, operations: int = 30, shrink: bool = True):
    """Raises AssertionError with the shortest life found after which the port deviates; the same lives at every run."""
    run_state_machine_as_test(
        machine(port),
        settings=settings(
            max_examples=sequences,
            stateful_step_count=operations,
            deadline=None,
            database=None,
            derandomize=True,
            phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
            report_multiple_bugs=False,
            suppress_health_check=[*HealthCheck],
        ),
    )
