"""Defects between calls, put into dsv4_mlx: each turns `parity run --pair cache` red, and the shortest life names it.

Some live in the cache objects alone, so that no patch of the reference could say the same: rewinds, copies, files,
batches that merge and split. Run: pytest tests/test_cache_defects.py; with -m slow, all of them.
"""

import math
import re

import mlx.core as mx
import pytest

from parity.cases.strategies import Profile
from parity.gate.defects import Defect, Edit, catalogue
from parity.gate.defects.patching import applied
from parity.jobs.lives import Life, LifeSearch, port
from parity.jobs.run import run
from parity.lives.port import Lives
from parity.pairs import registry
from parity.results import Verdict

PAIR = registry()["cache"]
PROFILE = Profile("many", 1, 180, 60, 30)


def inline(name, *edits):
    texts = dict.fromkeys(("title", "mechanism", "symptom", "visible", "seen", "formula"), name)
    return Defect(id=name, mlx=tuple(Edit(*edit) for edit in edits), **texts)


BUGS = [
    inline(
        "D013 one offset for a ragged batch",
        ("positions", "mx.array(self.starts)[:, None]", "mx.array(self.starts)[:1, None]"),
    ),
    inline(
        "D014 offset is an array", ("positions", "self.start = first.offset", "self.start = mx.array(first.offset)")
    ),
    inline(
        "D043 remainder of a ragged batch lost",
        ("pool", "[plan.rows[:, None], plan.index]", "[plan.rows[:, None], mx.maximum(plan.index, ring.size)]"),
    ),
    inline(
        "D045 filter leaves the pools alone",
        (
            "cache",
            "x[chosen] for x in self._arrays()]",
            "x[chosen] if x is self.ring.slots else x[: len(keep)] for x in self._arrays()]",
        ),
    ),
    inline(
        "D046 merge loses the remainder",
        ("cache", "return mx.concatenate(filled, axis=0)", "return mx.concatenate(filled, axis=0) * (length != 24)"),
    ),
    inline(
        "D046 state loses the block ahead",
        (
            "cache",
            "None if x is None else mx.array(x) for x in arrays]",
            "None if x is None else mx.array(x) * (i not in (1, 2)) for i, x in enumerate(arrays)]",
        ),
    ),
    inline(
        "D046 copies share their arrays",
        (
            "cache",
            "return LayerCache.from_state(self.state)",
            "made = self.from_state(self.state)\n        made._replace(self._arrays())\n        return made",
        ),
    ),
    inline(
        "D047 rows of rewound tokens kept",
        (
            "pool",
            "first, end = call.start // self.ratio",
            "first, end = max(call.start, call.rows[0].reach) // self.ratio",
        ),
    ),
    inline("D047 trim grants what is gone", ("cache", "row.reach - row.offset > REWIND", "False")),
    inline("D047 a prefix of other tokens", ("token_ids", "= new\n", "= mx.roll(new, 1, axis=1)\n")),
    inline(
        "D047 trim takes back nothing",
        ("cache", "        self.rows = rows\n        return taken", "        return taken"),
    ),
    inline("D047 trim tells another number", ("cache", "        return taken", "        return taken + 1")),
    inline(
        "D054 mask of another length",
        ("attention", "mx.arange(-count, call.tokens)", "mx.arange(-count, call.tokens) + (count == self.window - 1)"),
    ),
    inline("D055 unwritten keys in a ragged batch", ("attention", "& (key_at >= 0)", "")),
    inline(
        "D067 hashed choice without the batch",
        ("router", "return self.tid2eid[ids]", "return self.tid2eid[ids].reshape(-1, self.topk)"),
    ),
    inline(
        "D092 caches shared by requests",
        (
            "model",
            "return _caches(self.layers, placed=True)",
            'return self.__dict__.setdefault("_kept", _caches(self.layers, placed=True))',
        ),
    ),
    inline(
        "D093 entries that tell no size",
        ("cache", "return sum(x.nbytes for x in self._arrays() if x is not None)", "raise AttributeError('nbytes')"),
    ),
    inline(
        "D094 a chain that nobody reads",
        (
            "cache",
            "self.rows = call.after",
            "self.rows, self.sum = call.after, vars(self).get('sum', 0) + call.positions.sum()",
        ),
    ),
    inline("D096 ring without room for a rewind", ("cache", "Ring(window + REWIND)", "Ring(window)")),
    inline(
        "padding written",
        (
            "positions",
            "for token in range(max(count - size, 0), count)",
            "for token in range(max(self.tokens - size, 0), self.tokens)",
        ),
    ),
]
# What lives in calls alone: as patches of the catalogue.
CATALOGUE = """D033 D034 D035-always D035 D036 D036-overwritten D037 D038 D043 D044 D048
D050-overlap D050-plain D050-indexer D055 D055-batch D055-single D056 D056-counted D060 D060-keys D060-queries
D060-relative D061 X004 X011 X048 X049 X050 X054 X063 X064""".split()
FAST = {
    *("D014", "D034", "D067", "D092", "D093"),
    *("D047 trim tells another number"),
}


NAMED_FAST = {"D014", "D067", "D092"}  # cutting a life down takes others half a minute


def chosen(name, fast=FAST):
    return pytest.param(name, marks=[] if {name, name.split()[0]} & fast else pytest.mark.slow)


def judged(*defects, shrink=False):
    with applied(defects, "dsv4_mlx"):
        return LifeSearch(PAIR, "float32", PROFILE, 0).run(shrink=shrink)


@pytest.mark.parametrize("name", [chosen(bug.id) for bug in BUGS])
def test_a_bug_in_the_caches_is_found(name):
    bug = next(bug for bug in BUGS if bug.id == name)
    result = judged(bug)
    assert result.verdict in (Verdict.DIVERGES, Verdict.CRASHED)
    assert result.failure.sentence.startswith("After ")
    life = Life(**result.failure.case)
    assert Life.from_json(life.to_json()) == life
    search = LifeSearch(PAIR, "float32", PROFILE, 0)
    assert search.replay(life).verdict is Verdict.PARITY
    with applied([bug], "dsv4_mlx"):
        assert search.replay(life).verdict is result.verdict


@pytest.mark.parametrize("name", [chosen(name) for name in CATALOGUE if name in catalogue()])
def test_a_defect_of_the_catalogue_is_found(name):
    assert judged(catalogue()[name]).verdict in (Verdict.DIVERGES, Verdict.CRASHED)


@pytest.mark.parametrize("name", [chosen(bug.id, NAMED_FAST) for bug in BUGS if bug.id != "padding written"])
def test_the_shortest_life_names_it(name):
    """By its number, among few: what a life takes beside calls is what is wrong."""
    result = judged(next(bug for bug in BUGS if bug.id == name), shrink=True)
    told = result.failure.schedule
    number = int(name[1:4])
    spans = [(int(low), int(high or low)) for low, high in re.findall(r"D(\d{3})(?: to D(\d{3}))?", told)]
    assert any(low <= number <= high for low, high in spans), told
    assert len(result.failure.case["operations"]) <= 6


def test_sound_caches_are_green():
    search = LifeSearch(PAIR, "float32", Profile("few", 1, 180, 6, 15), 1)
    result = search.run(shrink=True)
    assert result.verdict is Verdict.PARITY
    assert 0 < result.ratio <= 1


REFUSALS = ("The port offers no trimming", "mlx-lm's store of prompts is refused")


def test_a_refusal_of_this_projects_own_port_is_a_gap(monkeypatch):
    """It offers everything: what it refuses in a life must not pass for agreement."""

    def refuse(self, n):
        raise NotImplementedError("A rewind is not supported.")

    monkeypatch.setattr("dsv4_mlx.cache.LayerCache.trim", refuse)
    report = run(Profile("few", 1, 9, 6, 15), ["cache"], ["float32"], 1, {})
    assert report.verdict is Verdict.COVERAGE_GAP
    (result,) = report.pairs
    said = result.failure.sentence  # of a random life, or of mlx-lm's store of prompts, whichever came to it first
    assert said in {f"{what}: A rewind is not supported" for what in REFUSALS}
    assert result.verdict is Verdict.COVERAGE_GAP
    assert result.failure.reproduce == "parity run --pair cache --dtype float32 --profile few --seed 1"
    assert report.sentence == f"Not all is offered that cache judges: {said}."
    assert result.ratio <= 1  # the lives go on without it


def test_one_wrong_token_of_a_life_is_seen():
    lives = Lives(port(PAIR.configs[0], 0, "float32"))
    ids = [index % lives.port.vocabulary for index in range(9)]
    right = lives.expected(ids, 3)
    assert lives.judge(ids, right) == ""
    assert lives.ratio <= 1
    wrong = mx.concatenate([right[:1], right[1:2] + 0.1, right[2:]])
    assert lives.judge(ids, wrong).startswith("token 7 of 9: logits are off by ")
    assert lives.ratio == math.inf
