"""The diagnosis names the defects that are there, several at once, and none that is not.

dsv4_mlx with defects is judged in this process; the probes, the matrix and the diagnosis are the gate's own.
Run: pytest tests/test_diagnosis.py, and with -m slow for the random sets (half an hour)
"""

import random
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from parity.gate.conditions import named
from parity.gate.defects import Edit, catalogue
from parity.gate.defects.patching import compatible
from parity.gate.diagnosis import Diagnoser, Hypothesis
from parity.gate.explaining import explain
from parity.gate.filling import reference
from parity.gate.matrix import Matrix, judge_probe
from parity.gate.probes import needed, of_profile, registry
from parity.jobs.score import Patched, judged_until_named
from parity.results import Verdict

KNOWN = catalogue()
WHOLE = [probe.mechanism for probe in of_profile("quick")]


def upto(*mechanisms):
    """These mechanisms and all that their probes need."""
    wanted = {*mechanisms}.union(*(needed(name) for name in mechanisms))
    return [name for name in WHOLE if name in wanted]


def judged(defects, mechanisms, scratch):
    """dsv4_mlx with these defects: the probes' references and the matrix."""
    engine, families, matrix = Patched(defects), {}, Matrix()
    for name in mechanisms:
        families[name] = reference(registry()[name], 0)
        judge_probe(engine, families[name], scratch / name, matrix)
    return families, matrix


def diagnosed(defects, mechanisms, scratch, unknown=()):
    """dsv4_mlx with these defects: its cells, the hypothesis, what the report says, whether the mechanism was red."""
    return explained(*judged(defects, mechanisms, scratch), unknown)


def explained(families, matrix, unknown=()):
    """As above, of what was judged, where these defects are not known."""
    diagnoser = Diagnoser(families, replace(matrix, cells=[replace(cell) for cell in matrix.cells]))
    diagnoser.known = {name: one for name, one in diagnoser.known.items() if name not in unknown}
    hypothesis = diagnoser.diagnose()
    said = explain(diagnoser, hypothesis)
    red = [cell for cell in diagnoser.matrix.cells if cell.verdict is not Verdict.PARITY]
    return SimpleNamespace(named={*hypothesis.defects}, said=said, red=red, hypothesis=hypothesis, diagnoser=diagnoser)


def of_ids(*ids):
    return [KNOWN[name] for name in ids]


# --- none, one, several ----------------------------------------------------------------------------------------


def test_no_defect_no_diagnosis(tmp_path):
    found = diagnosed([], upto("rope.inverse", "router.hash"), tmp_path)
    assert (found.red, found.said, found.hypothesis) == ([], [], Hypothesis())


# Of one mechanism and its neighbours in the maths: what is told apart only by numbers.
ALONE = ("D016", "D019-one-less", "D028-value", "D075-scale", "D010-sign")


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.slow] * (one in ALONE[1:4:2])) for one in ALONE])
def test_one_defect_is_named_with_what_to_do(tmp_path, name):
    defect = KNOWN[name]
    found = diagnosed([defect], upto(defect.mechanism), tmp_path)
    assert found.red[0].mechanism == defect.mechanism
    (entry,) = found.said
    assert entry.defects == [name]
    assert defect.title in entry.sentence
    assert name in entry.sentence
    assert entry.formula == [defect.formula]
    assert entry.explained == entry.red == len(found.red)
    assert all(cell.explained_by == [name] for cell in found.red)


@pytest.mark.parametrize(
    "name",
    [
        "X049",  # a ring that is written one slot ahead
        "D079",  # an expert that is lost where one token comes alone
    ],
)
def test_a_defect_that_only_decoding_shows(tmp_path, name):
    defect = KNOWN[name]
    assert defect.schedules == ("decode",)
    found = diagnosed([defect], upto(defect.mechanism), tmp_path)
    assert {cell.schedule for cell in found.red} == {"decode", "batch", "chunks"}  # which have single tokens too
    assert found.named == {name}


@pytest.mark.parametrize("name", ["D074", "D104", pytest.param("X092", marks=pytest.mark.slow)])
def test_what_gives_no_numbers_is_compared_where_it_gives_some(tmp_path, name):
    found = diagnosed(of_ids(name), upto("router.overflow", "router.underflow"), tmp_path)
    assert found.named == {name}


def test_what_is_finite_nowhere_resembles_nothing(tmp_path):
    """No comparison of nothing is an explanation."""
    family = reference(registry()["router.underflow"], 0)
    given = torch.full_like(family.exact[:1], torch.nan).float()
    found = Diagnoser({"router.underflow": family}, Matrix(logits={("router.underflow", "oneshot"): given}))
    assert not found._alike("router.underflow", "oneshot", given)
    given[0, :2] = family.exact[0, :2]
    assert found._alike("router.underflow", "oneshot", given.double())
    family_without_clear = replace(family, clear=torch.zeros_like(family.clear))
    found.families["router.underflow"] = family_without_clear
    assert not found._alike("router.underflow", "oneshot", given.double())


PAIRS = [
    ("D016", "D028-dropped"),  # far from each other
    ("D033", "D051-overlap-late"),  # in one mechanism, one of them between calls only
    ("D002", "D010"),  # the rotation, and the rotation back
    ("D075-scale", "D068"),  # the second stands on the first
]


@pytest.mark.parametrize(
    "ids", [pytest.param(p, id=" ".join(p), marks=[pytest.mark.slow] * (p in PAIRS[::3])) for p in PAIRS]
)
def test_two_at_once(tmp_path, ids):
    defects = of_ids(*ids)
    mechanisms = upto(*(d.mechanism for d in defects), "hc.sinkhorn", "attention.output")
    assert diagnosed(defects, mechanisms, tmp_path).named == {*ids}


@pytest.mark.slow
def test_what_goes_wrong_between_calls_hides_nothing_that_one_call_shows(tmp_path):
    """A remainder dropped, in a way that no known defect drops it, and rows not rotated, which all schedules show."""
    found = judged(of_ids("D036", "D005"), ["compressor.plain", "rope.plain_rows"], tmp_path)
    between = [name for name, one in KNOWN.items() if one.mechanism == "compressor.plain" and one.schedules]
    far = [name for name, one in KNOWN.items() if one.mechanism not in ("compressor.plain", "rope.plain_rows")]
    assert "D036" in between
    assert explained(*found).named == {"D036", "D005"}
    found = explained(*found, unknown=[*between, *far])  # far: for the time
    assert found.named == {"D005"}
    red = {(cell.mechanism, cell.schedule): cell.explained_by for cell in found.red}
    assert red["rope.plain_rows", "oneshot"] == red["rope.plain_rows", "cached"] == ["D005"]
    assert [by for (name, _), by in red.items() if name == "compressor.plain"] == [[], []]
    assert found.said[-1].sentence.startswith("No known defect")


@pytest.mark.slow
def test_one_way_without_a_cache_and_another_with_one_though_neither_is_of_this_mechanism(tmp_path):
    """Without the probe of ratio 128, whose defect the first is; nothing gives all schedules, nor two of one place."""
    ids, mechanisms = ("D050-cacheless", "D033"), upto("compressor.overlap")
    assert "compressor.plain" not in mechanisms
    kept = {one.mechanism for one in of_ids(*ids)} | {"attention.window"}
    far = [name for name, one in KNOWN.items() if one.mechanism not in kept]  # for the time
    assert diagnosed(of_ids(*ids), mechanisms, tmp_path, unknown=far).named == {*ids}


FIVE = ("D002", "D016", "D026", "D033", "D075-scale")


@pytest.mark.slow
def test_five_at_once(tmp_path):
    defects = of_ids(*FIVE)
    found = diagnosed(defects, upto(*(d.mechanism for d in defects)), tmp_path)
    assert found.named == {*FIVE}
    assert [entry.defects for entry in found.said] == [[name] for name in found.hypothesis.defects]
    assert all(cell.explained_by for cell in found.red)


@pytest.mark.slow
def test_a_defect_less_is_another_diagnosis(tmp_path):
    """The set above is found because it is there."""
    defects = of_ids(*FIVE[:-1])
    found = diagnosed(defects, upto(*(d.mechanism for d in of_ids(*FIVE))), tmp_path)
    assert found.named == {*FIVE[:-1]}


# --- what nobody knows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids", [("D028-dropped@one", "D010"), pytest.param(("D028-value", "D033"), marks=pytest.mark.slow)]
)
def test_cells_that_need_a_defect_are_counted_as_if_each_had_been_run(tmp_path, ids):
    found = diagnosed(
        [named(KNOWN, name) for name in ids], upto(*(named(KNOWN, name).mechanism for name in ids)), tmp_path
    )
    assert found.named == {*ids}
    for name in ids:
        without = [other for other in ids if other != name]
        held = lambda cell, left=without: found.diagnoser.reproduces(cell.mechanism, left, schedules=[cell.schedule])  # noqa: E731
        (entry,) = (one for one in found.said if one.defects == [name])
        assert entry.explained == sum(not held(cell) for cell in found.red)


def invented(file, old, new):
    """A defect that no file of the catalogue describes."""
    return replace(KNOWN["D016"], id="X999", reference=(), mlx=(Edit(file, old, new),))


SCALE = invented("attention", "self.attn_sink, self.dim**-0.5", "self.attn_sink, 1.1 * self.dim**-0.5")
OUTPUT = invented("attention", "self.wo_b(self.wo_a(o).flatten(-2))", "1.01 * self.wo_b(self.wo_a(o).flatten(-2))")


def test_an_unknown_defect_is_red_and_nothing_is_named(tmp_path):
    found = diagnosed([SCALE], upto("rope.inverse"), tmp_path)
    assert found.red[0].mechanism == "attention.queries"
    (entry,) = found.said
    assert (entry.defects, entry.red) == ([], len(found.red))
    assert re.match(
        r"No known defect, nor a small set of the \d+, gives what this port gives for attention.queries. Start there. "
        r"\d later ones may only follow from it: attention.sink, ",
        entry.sentence,
    )


@pytest.mark.slow
def test_an_unknown_defect_of_scale_shows_where_something_else_is_as_loud(tmp_path):
    """Most probes of attention cannot see the size of its output: the norms after it erase it."""
    found = diagnosed([OUTPUT], upto("rope.inverse", "mtp"), tmp_path)
    assert {cell.mechanism for cell in found.red} == {"attention.window", "mtp"}
    assert [entry.defects for entry in found.said] == [[]]


def test_an_unknown_defect_does_not_hide_a_known_one(tmp_path):
    found = diagnosed(
        [SCALE, KNOWN["D016"], KNOWN["D075-scale"]], upto("rope.inverse", "hc.comb", "router.hash"), tmp_path
    )
    assert found.named == {"D016", "D075-scale"}
    assert [entry.defects for entry in found.said] == [*([name] for name in found.hypothesis.defects), []]


def test_the_score_stops_where_one_hypothesis_is_left(tmp_path):
    diagnoser = judged_until_named(Patched(of_ids("D075-scale")), "quick", 0, tmp_path)
    assert diagnoser.beam[0].defects == ("D075-scale",)
    # X084 gives the same until the shared expert stands beside something else.
    assert [*diagnoser.families] == WHOLE[: WHOLE.index("attention.window") + 1]


# --- random sets -----------------------------------------------------------------------------------------------

ELIGIBLE = [d for d in KNOWN.values() if d.reference and d.mlx and not d.outside and d.mechanism in WHOLE]


def drawn(count, size, seed):
    """Sets of defects of different mechanisms that fit together in both packages."""
    chance, sets = random.Random(seed), []
    while len(sets) < count:
        defects = chance.sample(ELIGIBLE, size)
        apart = len({d.mechanism for d in defects}) == size
        if apart and all(compatible(defects, package) for package in ("reference_torch", "dsv4_mlx")):
            sets.append(sorted(d.id for d in defects))
    return sets


def outcomes(sets, scratch):
    """For each set: what was planted, what was named; printed as they come."""
    found = []
    for index, ids in enumerate(sets):
        named = diagnosed(of_ids(*ids), WHOLE, scratch / str(index)).named
        found.append(({*ids}, named))
        missed, wrong = {*ids} - named, named - {*ids}
        print(f"{', '.join(ids)}: {f'missed {missed}' if missed else 'all named'}{f', wrong {wrong}' if wrong else ''}")
    return found


def test_sets_are_drawn_from_the_seed():
    assert drawn(3, 5, 1) == drawn(3, 5, 1) != drawn(3, 5, 2)
    assert len(ELIGIBLE) > 110


@pytest.mark.slow
def test_random_pairs(tmp_path):
    found = outcomes(drawn(30, 2, seed=1), tmp_path)
    both, one = (sum(len(planted & named) >= least for planted, named in found) for least in (2, 1))
    print(f"pairs: both named in {both} of 30, at least one in {one}")
    assert both >= 24
    assert one == 30


@pytest.mark.slow
def test_random_sets_of_five(tmp_path):
    found = outcomes(drawn(20, 5, seed=2), tmp_path)
    right = sum(len(planted & named) for planted, named in found) / 20
    print(f"sets of five: {right} of five named on average")
    assert right >= 4
    assert all(named <= planted for planted, named in found)
