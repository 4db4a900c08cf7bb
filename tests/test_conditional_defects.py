"""Defects that act in some calls only are named with their condition, and nothing else is.

Run: pytest tests/test_conditional_defects.py, and with -m slow for forty at random (a quarter of an hour)
"""

import pytest

from parity.gate.conditions import CONDITIONS, Call, named, under, variants
from parity.gate.defects import catalogue
from parity.jobs.score import judged, some_conditional

KNOWN = catalogue()
ONE, LATER, BATCH = Call(0, 1, 1, True), Call(3, 4, 1, True), Call(0, 5, 2, True)


@pytest.mark.parametrize(
    ("name", "acts"),
    [
        ("one", [ONE]),
        ("later", [LATER]),
        ("chunks", [LATER]),
        ("several", [LATER, BATCH]),
        ("first", [ONE, BATCH]),
        ("batch", [BATCH]),
        ("alone", [ONE, LATER]),
        ("cached", [ONE, LATER, BATCH]),
        ("uncached", []),
    ],
)
def test_conditions(name, acts):
    assert [call for call in (ONE, LATER, BATCH) if CONDITIONS[name].acts(call)] == acts


def test_every_condition_is_tried_and_a_defect_between_calls_has_its_own():
    found = [one.id for one in variants(KNOWN)]
    assert {name.partition("@")[2] for name in found} == {*CONDITIONS}
    assert not any(name.startswith("D033@") for name in found)
    assert len(found) == len({*found})


def test_the_name_says_the_condition():
    sink = named(KNOWN, "D028-dropped@one")
    assert sink == under(KNOWN["D028-dropped"], CONDITIONS["one"])
    assert sink.title.endswith("in calls of one token")
    with pytest.raises(KeyError):
        named(KNOWN, "D028-dropped@never")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("D028-dropped@one", marks=pytest.mark.slow),
        "D075-scale@batch",
        pytest.param("D010@uncached", marks=pytest.mark.slow),
        pytest.param("D026@chunks", marks=pytest.mark.slow),
    ],
)
def test_a_defect_in_some_calls_is_named_with_them(name):
    found = judged(name, "quick", 0)
    assert (found.killed, found.named) == (True, [name])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_nine_of_ten_at_random(seed):
    results = [judged(name, "quick", 0) for name in some_conditional(10, seed)]
    assert all(result.killed for result in results)
    right = sum(result.named == [result.id] for result in results)
    wrong = [result for result in results if {*result.named} - {result.id}]
    assert right >= 9, [(result.id, result.named) for result in results]
    assert not wrong
