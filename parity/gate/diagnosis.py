"""Which defects explain a candidate: the reference with them gives the candidate's own wrong logits (method,
section 7).

Probes are visited in dependency order. A hypothesis is a set of defects; it must reproduce every cell of every probe,
the green ones too. Where one fails at a red probe, it is extended by the defects of that mechanism, else of what the
probe needs, else by any; where one fails at a green probe, it is refuted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from ..judging.runs import forward
from ..judging.tolerance import measure, rms
from .conditions import CONDITIONS, active, calls_of, variants
from .defects import Defect, catalogue
from .defects.patching import applied
from .families import Family
from .matrix import Matrix, ends_of
from .probes import needed, registry

# The null was measured on the reference as published; a defect's own rounding may be another few times that.
SAME = 3.0
# Or it is read off the defect's own runs in two types; then it may leave no more of the effect than this.
REST = 0.01
BEAM = 4  # hypotheses kept side by side
ENOUGH = 0.25  # of the tokens of a probe must be clear with the defects too
LARGE = 1000  # tokens of a probe above which a defect is not looked for whose own probe, a small one, came before
PAIRS_OF = 14  # two defects of one mechanism are tried together where it has at most this many


@dataclass
class Hypothesis:
    """Defects that reproduce all cells so far but the `unexplained` ones, each (mechanism, schedule); `reasons` are the
    probes that asked for them, one a defect."""

    defects: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    unexplained: tuple[tuple[str, str], ...] = ()

    def with_defects(self, mechanism: str, *names: str) -> Hypothesis:
        """The hypothesis with these defects too, for the sake of this probe."""
        reasons = (*self.reasons, *[mechanism] * len(names))
        return Hypothesis((*self.defects, *names), reasons, self.unexplained)

    def giving_up(self, *cells: tuple[str, str]) -> Hypothesis:
        """The hypothesis without a word on these cells."""
        return Hypothesis(self.defects, self.reasons, (*self.unexplained, *cells))

    def only_adds_to(self, other: Hypothesis) -> bool:
        """Whether the other one explains as much with fewer defects."""
        return {*other.defects} < {*self.defects} and {*other.unexplained} <= {*self.unexplained}

    @property
    def cost(self) -> tuple[int, int]:
        return len(self.unexplained), len(self.defects)


@dataclass
class Diagnoser:
    """What is known about one candidate, and what patched references gave."""

    families: dict[str, Family]
    matrix: Matrix
    known: dict[str, Defect] = field(default_factory=lambda: {i: d for i, d in catalogue().items() if d.reference})
    conditional: dict[str, Defect] = field(default_factory=dict)
    patched: dict = field(default_factory=dict)
    clear: dict = field(default_factory=dict)
    beam: list[Hypothesis] = field(default_factory=lambda: [Hypothesis()])

    def __post_init__(self):
        self.conditional = {one.id: one for one in variants(self.known)}

    def defect(self, name: str) -> Defect:
        """One of the catalogue, or one under a condition."""
        return self.known[name] if name in self.known else self.conditional[name]

    def schedules(self, mechanism: str) -> list[str]:
        """Schedules whose logits can be compared, cheap ones first, red ones before green ones."""
        red = {cell.schedule for cell in self.matrix.red(mechanism)}
        given = [s for s in self.families[mechanism].probe.schedules if (mechanism, s) in self.matrix.logits]
        return sorted(given, key=lambda s: (s not in red, s in ("decode", "batch")))

    def ground(self, mechanism: str, hypothesis: Hypothesis) -> list[str]:
        """Schedules under which all that the probe builds on is green or explained: there it can be reproduced. What
        goes wrong between calls only takes no ground from what one call shows."""
        missing = {*hypothesis.unexplained}
        return [s for s in self.schedules(mechanism) if not any((need, s) in missing for need in needed(mechanism))]

    def held(self, mechanism: str, hypothesis: Hypothesis) -> list[str]:
        """Schedules under which the hypothesis says what this probe gives."""
        return [s for s in self.schedules(mechanism) if (mechanism, s) not in hypothesis.unexplained]

    def reproduces(
        self, mechanism: str, defects: Iterable[str], rounded: bool = True, schedules: list[str] | None = None
    ) -> bool:
        """Whether the reference with these defects gives the candidate's logits under these schedules, all by default;
        with `rounded`, in float64 or in the probe's own type, since some defects multiply rounding until it drowns
        everything."""
        schedules = self.schedules(mechanism) if schedules is None else schedules
        if not defects:  # needs no run
            family, given = self.families[mechanism], self.matrix.logits
            clear = lambda s: family.clear & self._seen(mechanism, s)  # noqa: E731
            return all(family.measure(s, given[mechanism, s], clear=clear(s)).ratio <= SAME for s in schedules)
        return all(self._same(mechanism, schedule, frozenset(defects), rounded) for schedule in schedules)

    def _same(self, mechanism: str, schedule: str, defects: frozenset[str], rounded: bool = True) -> bool:
        run = self._run(mechanism, schedule, defects, "float64")
        if run is None:
            return False
        if self._alike(mechanism, schedule, run):
            return True
        if not rounded:
            return False
        again = self._run(mechanism, schedule, defects, self.families[mechanism].probe.dtype)
        if again is not None and (
            self._alike(mechanism, schedule, again) or self._alike_within(mechanism, schedule, run, again)
        ):
            return True
        clear = self._clear(mechanism, defects) if self._partly_alike(mechanism, schedule, run) else None
        return clear is not None and self._alike(mechanism, schedule, run, clear)

    def nearly_reproduces(self, mechanism: str, schedule: str, fewer: tuple[str, ...], whole: tuple[str, ...]) -> bool:
        """Whether these defects reproduce what the `whole` set of them does. Where the whole does so in float64, runs
        in another type, and of choices that are unclear, are only made where a part of the tokens agrees already."""
        if self.reproduces(mechanism, fewer, False, [schedule]):
            return True
        run = self._run(mechanism, schedule, frozenset(fewer), "float64") if fewer else None
        if run is None or not self.reproduces(mechanism, whole, False, [schedule]):
            return self.reproduces(mechanism, fewer, True, [schedule])
        return self._partly_alike(mechanism, schedule, run) and self.reproduces(mechanism, fewer, True, [schedule])

    def _alike(self, mechanism: str, schedule: str, run: Tensor, clear: Tensor | None = None) -> bool:
        """Whether a patched reference gave what the candidate gave, tokens without finite logits included."""
        family, given = self.families[mechanism], self.matrix.logits[mechanism, schedule]
        seen = self._seen(mechanism, schedule)
        run, finite = run.double(), run.isfinite().all(-1)
        if not torch.equal(finite & seen, given.isfinite().all(-1) & seen):
            return False
        judged = (family.clear if clear is None else clear) & seen
        judged[: len(run)] &= finite
        if not judged[: len(run)].any():  # nothing was shown
            return False
        whole = torch.zeros_like(family.exact)
        whole[: len(run)] = run
        return family.measure(schedule, given, whole, judged).ratio <= SAME

    def _alike_within(self, mechanism: str, schedule: str, run: Tensor, again: Tensor) -> bool:
        """Whether a patched reference gave what the candidate gave but for what its type does there, where the defect
        multiplies rounding and nearly nothing of its effect is left."""
        family, given = self.families[mechanism], self.matrix.logits[mechanism, schedule]
        rows = len(run)
        judged = (family.clear & self._seen(mechanism, schedule))[:rows]
        exact, run, again, given = (x[:rows].double()[judged] for x in (family.exact, run, again, given))
        if not judged.any() or not all(x.isfinite().all() for x in (run, again, given)):
            return False
        m = measure(run, again.to(family.baseline.dtype), [], given, family.probe.dtype)
        return m.ratio <= 1 and m.error_rms <= REST * rms(given - exact) and m.null_rms <= REST * rms(run - exact)

    def _partly_alike(self, mechanism: str, schedule: str, run: Tensor) -> bool:
        """Whether enough tokens agree for the others to be a matter of unclear choices."""
        family, given = self.families[mechanism], self.matrix.logits[mechanism, schedule]
        m = family.measure(schedule, family.exact[: len(run)])
        agree = (given.double() - run.double()).abs().amax(-1) <= SAME * m.limit_max
        agree = agree[:, self._seen(mechanism, schedule)]
        return bool(agree.double().mean() >= ENOUGH)

    def _seen(self, mechanism: str, schedule: str) -> Tensor:
        """[tokens]: those whose logits the candidate gave."""
        family = self.families[mechanism]
        if (mechanism, schedule) in self.matrix.ends_only:
            return ends_of(family, family.probe.calls_of(schedule))
        return torch.ones(family.exact.shape[1], dtype=torch.bool)

    def _clear(self, mechanism: str, defects: frozenset[str]) -> Tensor | None:
        """Tokens of which no choice is unclear with these defects either; None where they are too few to tell."""
        key = mechanism, defects
        if key not in self.clear:
            family, self.clear[key] = self.families[mechanism], None
            try:
                with applied([self.defect(name) for name in defects], "reference_torch"), torch.no_grad():
                    clear = family.clear_now() & family.clear
            except Exception:  # as in _run
                clear = torch.zeros_like(family.clear)
            if clear.sum() >= ENOUGH * family.clear.sum():
                self.clear[key] = clear
        return self.clear[key]

    def _run(self, mechanism: str, schedule: str, defects: frozenset[str], dtype: str) -> Tensor | None:
        """Logits of the patched reference; None where the patches exclude each other or it fails."""
        patches = [self.defect(name) for name in defects]
        built = frozenset(one.id for one in patches if not one.condition)
        key = mechanism, schedule, built, self.at_work(mechanism, schedule, defects), dtype
        if key not in self.patched:
            try:
                self.patched[key] = patched_logits(self.families[mechanism], schedule, patches, dtype)
            except Exception:  # a defect may make the reference fail on shapes it was not made for: then it is not it
                self.patched[key] = None
        return self.patched[key]

    def at_work(self, mechanism: str, schedule: str, defects: Iterable[str]) -> tuple[frozenset[str], ...]:
        """Which of these defects act in each call, whatever their conditions are called."""
        calls = calls_of(self.families[mechanism].probe, schedule, self.families[mechanism].rows(schedule))
        patches = [self.defect(name) for name in defects]
        return tuple(frozenset(one.id.partition("@")[0] for one in active(patches, call)) for call in calls)

    def diagnose(self) -> Hypothesis:
        """The smallest set of defects that explains most of what was seen."""
        for mechanism in self.families:
            self.visit(mechanism)
        return self._reduced(self.beam[0])

    def visit(self, mechanism: str) -> None:
        """Hold the hypotheses to one more probe."""
        if not self.schedules(mechanism):
            return
        red, following = {cell.schedule for cell in self.matrix.red(mechanism)}, {}
        for hypothesis in self.beam:
            ground = self.ground(mechanism, hypothesis)
            beyond = [(mechanism, s) for s in self.schedules(mechanism) if s not in ground]
            hypothesis = hypothesis.giving_up(*beyond)
            if self.reproduces(mechanism, hypothesis.defects, schedules=ground):
                further = [hypothesis]
            else:  # where all of it is green it is refuted
                further = self._extended(mechanism, hypothesis, ground) if red & {*ground} else []
            for found in further:
                following.setdefault(frozenset(found.defects), found)
        if not following:  # all refuted: what the red cells showed has another reason
            cells = [(m, cell.schedule) for m in self.families for cell in self.matrix.red(m)]
            following = {frozenset(): Hypothesis().giving_up(*cells)}
        found = [h for h in following.values() if not any(h.only_adds_to(other) for other in following.values())]
        self.beam = sorted(found, key=lambda h: h.cost)[:BEAM]

    def _extended(self, mechanism: str, hypothesis: Hypothesis, ground: list[str]) -> list[Hypothesis]:
        """The hypothesis with one more defect, or two of one mechanism, that reproduce this probe under all these
        schedules; else without what it does not reproduce."""
        lost = [s for s in ground if not self.reproduces(mechanism, hypothesis.defects, schedules=[s])]
        for group, size, rounded in self._groups(mechanism):
            names = [name for name in group if self._may_join(name, hypothesis, mechanism, lost)]
            if size > 1 and len(names) > PAIRS_OF:
                continue
            extended = [(new, hypothesis.with_defects(mechanism, *new)) for new in combinations(names, size)]
            found = [
                h
                for new, h in extended
                if self.reproduces(mechanism, h.defects, rounded, ground) and self._holds_earlier(mechanism, h, new)
            ]
            if found:
                return found
        if registry()[mechanism].tokens <= LARGE and (found := self._by_schedule(mechanism, hypothesis, ground, lost)):
            return found
        return [hypothesis.giving_up(*((mechanism, s) for s in lost))]

    def _by_schedule(
        self, mechanism: str, hypothesis: Hypothesis, ground: list[str], lost: list[str]
    ) -> list[Hypothesis]:
        """The hypothesis with two defects of any mechanism, each of which gives what one of these schedules gave: a
        port may be wrong in one way without a cache and in another with one."""
        fits = lambda schedule: [  # noqa: E731
            name
            for name in self.known
            if self._may_join(name, hypothesis, mechanism, lost)
            and self.reproduces(mechanism, (*hypothesis.defects, name), False, [schedule])
        ]
        first = fits(lost[0])
        over = [
            s
            for s in lost[1:]
            if not any(self.reproduces(mechanism, (*hypothesis.defects, n), False, [s]) for n in first)
        ]
        second = fits(over[0]) if first and over else []
        pairs = [(one, other) for one in first for other in second if one != other]
        extended = [(new, hypothesis.with_defects(mechanism, *new)) for new in pairs]
        return [
            h
            for new, h in extended
            if self.reproduces(mechanism, h.defects, schedules=ground) and self._holds_earlier(mechanism, h, new)
        ]

    def _holds_earlier(self, mechanism: str, hypothesis: Hypothesis, new: tuple[str, ...]) -> bool:
        """Whether the new defects' own probes, where they were visited before, are reproduced too."""
        visited = [*self.families][: [*self.families].index(mechanism)]
        own = {self.defect(name).mechanism for name in new} & {*visited}
        return all(self.reproduces(m, hypothesis.defects, schedules=self.held(m, hypothesis)) for m in own)

    def _may_join(self, name: str, hypothesis: Hypothesis, mechanism: str, lost: list[str]) -> bool:
        """Whether the hypothesis lacks this defect, and its condition holds in every schedule that is still lost."""
        defect, have = self.defect(name), {one.partition("@")[0] for one in hypothesis.defects}
        if name.partition("@")[0] in have or not defect.condition:
            return name not in hypothesis.defects
        acts, family = CONDITIONS[defect.condition].acts, self.families[mechanism]
        return all(any(map(acts, calls_of(family.probe, s, family.rows(s)))) for s in lost)

    def _groups(self, mechanism: str) -> list[tuple[list[str], int, bool]]:
        """Defects to try, how many together, and whether in the probe's own type too: the mechanism's own, then those
        of what its probe needs at once, the own under a condition, two of either, then all others."""
        needs = registry()[mechanism].needs
        own = [name for name, defect in self.known.items() if defect.mechanism == mechanism]
        near = [name for name, defect in self.known.items() if defect.mechanism in needs]
        far = [name for name in self.known if name not in (*own, *near)]
        own_under, near_under = (
            [one.id for one in self.conditional.values() if one.mechanism in mechanisms]
            for mechanisms in ((mechanism,), needs)
        )
        alone = (own, 1, False), (near, 1, False), (own, 1, True), (own_under, 1, False)
        together = (own, 2, False), (near, 2, False), (own, 2, True)
        rest = ((far, 1, False), (near_under, 1, False)) if registry()[mechanism].tokens <= LARGE else ()
        return [one for one in (*alone, *together, *rest) if one[0]]

    def _reduced(self, hypothesis: Hypothesis) -> Hypothesis:
        """Without the defects that later ones made superfluous."""
        explained = {m: held for m in self.families if (held := self.held(m, hypothesis))}
        for name, reason in zip(hypothesis.defects, hypothesis.reasons, strict=True):
            left = [pair for pair in zip(hypothesis.defects, hypothesis.reasons, strict=True) if pair[0] != name]
            fewer = tuple(defect for defect, _ in left)
            first = sorted(explained, key=lambda m, reason=reason: m != reason)
            if all(self.reproduces(m, fewer, schedules=explained[m]) for m in first):
                hypothesis = Hypothesis(fewer, tuple(reason for _, reason in left), hypothesis.unexplained)
        return hypothesis


def patched_logits(
    family: Family,
    schedule: str,
    defects: list[Defect],
    dtype: str = "float64",
    calls: tuple[int, ...] | None = None,
) -> Tensor:
    """The reference's logits with these defects under a schedule, or of its first `calls`, [rows, tokens, V]."""
    probe, ids = family.probe, family.ids[: family.rows(schedule)]
    with applied([one for one in defects if not one.condition], "reference_torch"), torch.no_grad():
        model = family.side(dtype).model
    calls = () if schedule == "oneshot" and not probe.calls else calls or probe.calls_of(schedule)
    asked = calls_of(probe, schedule, len(ids))
    at_work = lambda index: applied(active(defects, asked[index]), "reference_torch")  # noqa: E731
    with torch.no_grad():
        return forward(model, ids, calls, probe.mtp, at_work)
