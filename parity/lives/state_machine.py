"""Random lives of a cache: whatever was done to it, the next tokens must come out as one call without it gives them.

For any model that keeps mlx-lm's contract: `model(ids, cache=...)`, entries with `is_trimmable`, `trim` and `state`,
and, where batches are offered, `merge`, `extract`, `filter`, `extend`, `prepare` and `finalize`.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition
from mlx_lm.models import cache as mlx_lm_cache

from . import script
from .operations import BY_MLX_LM, operation
from .port import Broken, Lives
from .served import Served
from .sessions import Sequence, Session

LONGEST = 180  # tokens a sequence: beyond a block of 128 and all that the rings of a tiny window hold
SESSIONS = 4  # caches alive at once
ROWS = 6  # sequences of a batch
DRAFT = 16  # tokens that any cache that calls itself trimmable must take back


class CacheMachine(Served, RuleBasedStateMachine):
    """Sessions that come, go, mix and branch; `lives` is set by `explore` and `relive`."""

    lives: Lives

    def __init__(self):
        super().__init__()
        self.sessions: list[Session] = []
        self.done: list[tuple[str, dict]] = []
        self.current: Session | None = None
        self.trying: str | None = None  # the operation that a refusal would be about
        self.script: list[str] = []
        self.names = 0
        self.port = self.lives.port
        self.lives.lives += 1

    # --- helpers, not rules ----------------------------------------------------------------------------------

    def pick(self, which: int) -> Session:
        return self.pick_of(self.sessions, which)

    def pick_of(self, sessions: list[Session], which: int) -> Session:
        self.current = sessions[which % len(sessions)]
        return self.current

    @property
    def batches(self) -> list[Session]:
        return [session for session in self.sessions if session.batched]

    def offered(self, name: str) -> bool:
        return name not in self.lives.without and name not in self.lives.lacking

    def fail(self, what: str, raised: bool):
        past = ", ".join(self.current.done) if self.current else ""
        suspect, self.lives.suspect = self.lives.suspect, None
        said = f"After {past or 'nothing'}: {what.rstrip('.')}"
        self.lives.fail(Broken([*self.done], said, raised, None if raised else suspect, [*self.script]))

    def goes_on_without(self, name: str) -> bool:
        """Whether this life up to here breaks nothing where an operation that was refused is left out; what was being
        done to a cache then is undone with it."""
        lives = Lives(self.port.renewed(), self.lives.without | {name, *self.lives.lacking}, known=self.lives.known)
        machine = type(type(self).__name__, (type(self),), {"lives": lives})()
        try:
            for operation_, given in [*self.done, ("prefill", {"which": 0, "tokens": 2, "seed": 0})]:
                getattr(machine, operation_)(**given)
        except Exception:
            return False
        self.lives.lacking |= lives.lacking
        self.sessions = [session for session in self.sessions if session is not self.current]
        self.sessions = self.sessions or [Session(self.port.make_cache(), [Sequence()])]
        return True

    def named(self) -> str:
        """The next cache's name in the script."""
        self.names += 1
        return f"c{self.names - 1}"

    def keep(self, session: Session):
        self.current = session
        self.sessions = [*self.sessions, session][-SESSIONS:]
        self.probe(session)

    def start(self, tokens: int, seed: int):
        name = self.named()
        self.script.append(script.assign(name, "make_prompt_cache(model)"))
        self.keep(Session(self.port.make_cache(), [Sequence()], name=name))
        self.call(self.sessions[-1], tokens, seed)

    def feed(self, session: Session, counts: list[int], seed: int, padding: int = 0, left: bool = False):
        """The next counts[i] tokens of each sequence, then the comparison."""
        random = np.random.default_rng(seed)
        self.trying = self.trying or session.untried
        new = [random.integers(0, self.port.vocabulary, n).tolist() for n in counts]
        width = max(counts) + padding
        filling = [random.integers(0, self.port.vocabulary, width - n).tolist() for n in counts]
        padded = [len(pad) for pad in filling]
        if any(padded):
            announced = {"left_padding": padded} if left else {"lengths": counts, "right_padding": padded}
            self.script.append(script.each(session.name, "prepare", **announced))
            for entry in session.cache:
                entry.prepare(**announced)
        ids = [pad + real if left else real + pad for pad, real in zip(filling, new, strict=True)]
        self.script.append(f"logits = call({ids}, {session.name})")
        logits = self.port.call(mx.array(ids), session.cache)
        mx.eval(logits)
        self.trying = session.untried = None  # it takes calls
        if any(padded):
            self.script.append(script.each(session.name, "finalize"))
            for entry in session.cache:
                entry.finalize()
        for i, (row, real, pad) in enumerate(zip(session.rows, new, padded, strict=True)):
            row.extend(real)
            if real:
                got = logits[i, pad:] if left else logits[i, : len(real)]
                wrong = self.lives.judge(row.ids, got)
                if wrong:
                    token = self.lives.suspect_token
                    place = token - (len(row.ids) - len(real)) + (pad if left else 0)
                    self.script += script.compared(f"logits[{i}, {place}]", row.ids, token)
                assert not wrong, f"sequence {i} of {len(session.rows)}, {wrong}"

    def call(self, session: Session, tokens: int, seed: int):
        """As many tokens of every sequence, or as many as it still may have."""
        tokens = self.room(session, tokens)
        if tokens > 0:
            session.done.append(f"{tokens} token{'s' * (tokens > 1)}")
            self.feed(session, [tokens] * len(session.rows), seed)

    def probe(self, session: Session):
        """What comes next, on a copy: one token, then enough of them to complete blocks."""
        session.untried = self.trying
        if not self.offered("branch"):
            return
        told = len(self.script)
        self.script.append(script.assign("ahead", f"copy.deepcopy({session.name})"))
        cache = self.copied(session)
        if cache is not None:
            ahead = Session(cache, session.copied_rows(), session.batched, session.done, session.untried, "ahead")
            for tokens in (1, 9):
                if self.room(ahead, tokens) == tokens:
                    self.feed(ahead, [tokens] * len(ahead.rows), seed=tokens)
            session.untried = ahead.untried
        del self.script[told:]  # all was right there

    def copied(self, session: Session) -> list | None:
        """A copy of its cache; None where the port has none, which may show only after some calls."""
        try:
            return copy.deepcopy(session.cache)
        except TypeError as error:
            if "pickle" not in str(error):
                raise
            self.lives.lacking["branch"] = f"The port offers no copies: TypeError: {error}."
            return None

    def room(self, session: Session, tokens: int) -> int:
        return min(tokens, LONGEST - max(session.lengths))

    # --- rules -------------------------------------------------------------------------------------------------

    @operation(
        initialize,
        tokens=st.one_of(st.integers(0, 9), st.integers(0, 140)),
        seed=st.integers(0, 2**32 - 1),
    )
    def first(self, tokens, seed):
        self.start(tokens, seed)

    @operation(tokens=st.one_of(st.integers(0, 9), st.integers(0, 140)), seed=st.integers(0, 2**32 - 1))
    def new(self, tokens, seed):
        """Another cache beside those that live."""
        if self.offered("new"):
            self.start(tokens, seed)

    @operation(
        which=st.integers(0, SESSIONS - 1),
        tokens=st.one_of(st.integers(1, 12), st.integers(1, 140)),
        seed=st.integers(0, 2**32 - 1),
    )
    def prefill(self, which, tokens, seed):
        """One call of any length: a prompt, a chunk, a draft."""
        self.call(self.pick(which), tokens, seed)

    @operation(which=st.integers(0, SESSIONS - 1), tokens=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
    def decode(self, which, tokens, seed):
        """Token by token."""
        session = self.pick(which)
        for step in range(self.room(session, tokens)):
            self.call(session, 1, (seed + step) % 2**32)

    @operation(which=st.integers(0, SESSIONS - 1), tokens=st.one_of(st.integers(0, DRAFT), st.integers(0, 60)))
    def trim(self, which, tokens):
        """As mlx-lm does it; what says that it is trimmable must take back a draft, or refuse and stay as it is."""
        session = self.pick(which)
        if not self.offered("trim") or not mlx_lm_cache.can_trim_prompt_cache(session.cache):
            return
        tokens = min(tokens, *session.lengths)
        self.script.append(f"trim_prompt_cache({session.name}, {tokens})")
        try:
            taken = mlx_lm_cache.trim_prompt_cache(session.cache, tokens)
        except ValueError:
            self.script[-1] = f"# {self.script[-1]} is refused"
            back = max(row.reach - len(row.ids) + tokens for row in session.rows)
            assert back > DRAFT, f"a rewind of {tokens} tokens, {back} with those before, was refused"
            session.done.append(f"refused to trim {tokens}")
            self.probe(session)
            return
        assert taken == tokens, f"trim({tokens}) of sequences of {session.lengths} tokens gave {taken}"
        session.done.append(f"trimmed {tokens}")
        for row in session.rows:
            row.ids = row.ids[: len(row.ids) - tokens]
        self.probe(session)

    @operation(which=st.integers(0, SESSIONS - 1))
    def save_and_restore(self, which):
        session = self.pick(which)
        if not self.offered("save_and_restore"):
            return
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "cache.safetensors")
            self.script.append(f"save_prompt_cache('cache.safetensors', {session.name})")
            self.script.append(script.assign(session.name, "load_prompt_cache('cache.safetensors')"))
            mlx_lm_cache.save_prompt_cache(path, session.cache)
            session.cache = mlx_lm_cache.load_prompt_cache(path)
            mx.eval([entry.state for entry in session.cache])
        session.done.append("saved and restored")
        self.probe(session)

    @operation(which=st.integers(0, SESSIONS - 1))
    def weigh(self, which):
        """As mlx-lm's server does with what it stores."""
        session = self.pick(which)
        if not self.offered("weigh"):
            return
        self.script.append(f"print(sum(entry.nbytes for entry in {session.name}), 'bytes')")
        weight = sum(entry.nbytes for entry in session.cache)
        assert weight > 0 or not max(session.lengths), f"nbytes of {session.lengths} tokens is {weight}"
        session.done.append("weighed")

    @operation(which=st.integers(0, SESSIONS - 1))
    def branch(self, which):
        session = self.pick(which)
        if not self.offered("branch"):
            return
        name = self.named()
        self.script.append(script.assign(name, f"copy.deepcopy({session.name})"))
        cache = self.copied(session)
        if cache is not None:
            self.keep(Session(cache, session.copied_rows(), session.batched, [*session.done, "copied"], name=name))

    @operation(which=st.lists(st.integers(0, SESSIONS - 1), min_size=1, max_size=3))
    def merge(self, which):
        """Single sequences become a batch; they themselves live on."""
        chosen = [session for session in map(self.pick, which) if not session.batched]
        if not chosen or not self.offered("merge"):
            return
        name = self.named()
        self.script.append(script.merged(name, [s.name for s in chosen]))
        cache = [entries[0].merge([*entries]) for entries in zip(*(s.cache for s in chosen), strict=True)]
        done = [f"merged ({'; '.join(', '.join(s.done) or 'nothing' for s in chosen)})"]
        self.keep(Session(cache, [session.copied_rows()[0] for session in chosen], True, done, name=name))

    @precondition(lambda self: self.batches)
    @operation(
        which=st.integers(0, SESSIONS - 1),
        counts=st.lists(st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 140)), min_size=ROWS, max_size=ROWS),
        padding=st.sampled_from([0, 0, 1, 5]),
        left=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )
    def ragged(self, which, counts, padding, left, seed):
        """A call with as many tokens of each sequence as it likes, padded; on the left only from the start on."""
        if not self.batches or not self.offered("ragged"):
            return
        session = self.pick_of(self.batches, which)
        counts = [min(n, LONGEST - seen) for n, seen in zip(counts, session.lengths, strict=False)]
        left = left and self.offered("ragged_left") and not any(row.reach for row in session.rows)
        self.trying = "ragged_left" if left else "ragged"
        if max(counts) + padding > 0:
            session.done.append(f"padded {'left' if left else 'right'} {counts}+{padding}")
            self.feed(session, counts, seed, padding, left)

    @precondition(lambda self: self.batches)
    @operation(which=st.integers(0, SESSIONS - 1), row=st.integers(0, ROWS - 1))
    def extract(self, which, row):
        if self.batches and self.offered("extract"):
            session = self.pick_of(self.batches, which)
            row %= len(session.rows)
            name = self.named()
            self.script.append(script.assign(name, f"[entry.extract({row}) for entry in {session.name}]"))
            cache = [entry.extract(row) for entry in session.cache]
            done = [*session.done, f"extracted {row}"]
            self.keep(Session(cache, [session.copied_rows()[row]], False, done, name=name))

    @precondition(lambda self: self.batches)
    @operation(which=st.integers(0, SESSIONS - 1), keep=st.lists(st.booleans(), min_size=ROWS, max_size=ROWS))
    def filter(self, which, keep):
        if not self.batches or not self.offered("filter"):
            return
        session = self.pick_of(self.batches, which)
        kept = [row for row in range(len(session.rows)) if keep[row]]
        if kept:
            self.script.append(script.each(session.name, "filter", kept))
            for entry in session.cache:
                entry.filter(kept)
            session.rows = [session.rows[row] for row in kept]
            session.done.append(f"filtered {kept}")
            self.probe(session)

    @precondition(lambda self: len(self.batches) > 1)
    @operation(which=st.integers(0, SESSIONS - 1), other=st.integers(0, SESSIONS - 1))
    def extend(self, which, other):
        """A batch takes another in, which is gone then."""
        if not self.batches or not self.offered("extend"):
            return
        session, other = self.pick_of(self.batches, which), self.pick_of(self.batches, other)
        if session is other or len(session.rows) + len(other.rows) > ROWS:
            return
        self.script.append(f"for entry, added in zip({session.name}, {other.name}): entry.extend(added)")
        for entry, added in zip(session.cache, other.cache, strict=True):
            entry.extend(added)
        session.rows += other.rows
        session.done.append(f"extended by ({', '.join(other.done)})")
        self.sessions = [s for s in self.sessions if s is not other]
        self.probe(session)


BEGINNINGS = ("first", "generate", *BY_MLX_LM)
OPERATIONS = (
    *(*BEGINNINGS, "new", "prefill", "decode", "trim", "save_and_restore", "weigh", "branch"),
    *("merge", "ragged", "extract", "filter", "extend"),
)
