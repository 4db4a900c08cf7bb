"""Which of two ends is the line, where the port does the reference's call without a function of its own. Run: pytest
tests/test_lines_ends.py"""

import numpy as np
import pytest
from watched_text import name_of, watched

from parity.lines.answers import Finding
from parity.lines.causes import Cause
from parity.lines.matching import Meant
from parity.lines.narrowing import Between, Narrowing
from parity.lines.operations import Called, Operation
from parity.lines.placing import Placing
from parity.lines.seen import Seen
from parity.lines.sites import Site

PORT = """import mlx.core as mx

def attention(x):
    q = x * 2
    {between}



    return {use}

def weigh(q):
    return mx.cos(q)

def main():
    return attention(mx.arange(10.0) + 1)
"""
QUERIES, ATTEND = Called("attention.py", "queries"), Called("attention.py", "attend")


def chosen(tmp_path, use, called, between="", rule="left out between"):
    """The line of the end that is called the line. The reference makes q, and 3q from it, in `queries`; their cosine,
    which is wrong, in `attend`."""
    found = watched(tmp_path, PORT.format(use=use, between=between))
    x = np.arange(10.0) + 1
    named = {"x": x, "q": x * 2, "more": x * 6, "cosine": np.sort(np.cos(x * 2))}
    keys = [name_of(value, named) for value in found.values]
    known = [Meant("wrong" if key == "cosine" else "right", key) for key in keys]
    operation = lambda key, given, where: Operation(  # noqa: E731
        "op", named[key], named[key], key, frozenset(given), where=((where, 1),)
    )
    done = [operation("q", ["x"], QUERIES), operation("more", ["q"], QUERIES), operation("cosine", ["q"], ATTEND)]
    seen = Seen(found, known)
    first = next(i for i, one in enumerate(found.events) if known[one.value].key == "cosine")
    cause = Cause("op", frozenset({"q"}), frozenset({"normed"}), how="left out", key="cosine")
    after = next(one.step for one in found.events if known[one.value].key == "q")
    ends = Between(found.events[first].step, after, rule, first, cause, done[-1])
    step = Placing(seen, done, [Site("attention.py", called.function, range(1, 2))], ends)._inlined(called)
    return None if step is None else found.steps[step].line


def test_the_end_whose_value_the_references_call_makes_is_the_line(tmp_path):
    assert chosen(tmp_path, "weigh(q)", QUERIES) == 4
    assert chosen(tmp_path, "mx.cos(q)", ATTEND) == 9


def test_an_end_is_no_line_if_its_function_is_given_what_does_not_belong_there(tmp_path):
    assert chosen(tmp_path, "weigh(q)", ATTEND) is None


def test_an_end_is_no_line_if_the_same_work_goes_on_further_away(tmp_path):
    assert chosen(tmp_path, "weigh(q)", QUERIES, between="\n\n\n\n    more = q * 3") is None
    assert chosen(tmp_path, "weigh(q)", QUERIES, between="more = q * 3") == 4


def test_no_end_is_chosen_by_an_answer_that_has_none(tmp_path):
    assert chosen(tmp_path, "weigh(q)", QUERIES, rule="blank") is None


TWICE = """import mlx.core as mx

def attention(x):
    q = x * 2
    {gap}
    q = rotate(q)
    k = rotate(x * 3)
    return mx.exp(k) + q

def rotate(x):
    return mx.cos(x)

def main():
    return attention(mx.arange(10.0) + 1)
"""


@pytest.mark.parametrize(
    ("gap", "kind", "lines"), [("", "line", (6, None)), ("\n\n\n\n", "between", (10, 4))], ids=("near", "far")
)
def test_what_is_left_out_before_a_function_that_is_right_elsewhere(tmp_path, gap, kind, lines):
    """The line, if it is called where the value is made; else between the call and that."""
    found = watched(tmp_path, TWICE.format(gap=gap))
    x = np.arange(10.0) + 1
    normed = x * 2 / 7
    named = {
        "x": x,
        "q": x * 2,
        "turned": np.cos(x * 2),
        "k": x * 3,
        "k turned": np.cos(x * 3),
        "right": np.cos(normed),
    }
    named = {name: np.sort(one) for name, one in named.items()} | {"normed": normed}
    states = {"turned": "wrong", "": "other"}
    keys = [name_of(value, named) for value in found.values]
    known = [Meant(states.get(key, "right"), key) for key in keys]
    operation = lambda name, key, given: Operation(f"aten.{name}", named[key], named[key], key, frozenset([given]))  # noqa: E731
    made = [operation("mul", "q", "x"), operation("mul", "k", "x"), operation("cos", "k turned", "k")]
    right = [*made, operation("div", "normed", "q"), operation("cos", "right", "normed")]
    answer = Finding(found, known, right, [*made, operation("cos", "turned", "q")]).answer()
    line = lambda step: None if step is None else found.steps[step].line  # noqa: E731
    assert (answer.kind, (line(answer.at), line(answer.after))) == (kind, lines)


# --- what is handed on, and what is handed out -----------------------------------------------------------------------

HANDS = """import mlx.core as mx

def attention(x):
    q = make(x)
    return attend(q)

def make(x):
    return x * 2

def attend(q):
    return mx.cos(q)

def main():
    {twice}
    return attention(mx.arange(10.0) + 1)
"""


def narrowed(tmp_path, twice="pass"):
    """What is looked at if the cosine of q is wrong, which does not belong there; its stack."""
    found = watched(tmp_path, HANDS.format(twice=twice))
    x = np.arange(10.0) + 1
    named = {"x": x, "q": x * 2, "cosine": np.sort(np.cos(x * 2)), "other": x * 6, "right": np.sort(np.cos(x * 6))}
    keys = [name_of(value, named) for value in found.values]
    known = [Meant("wrong" if key == "cosine" else "right", key) for key in keys]
    done = [Operation("op", named["q"], named["q"], "q", frozenset(["x"]), where=((QUERIES, 1),))]
    seen = Seen(found, known)
    first = next(i for i, one in enumerate(found.events) if known[one.value].key == "cosine")
    cause = Cause("op", frozenset({"q"}), frozenset({"normed"}), how="left out", key="cosine")
    ends = Between(found.events[first].step, None, "left out between", first, cause, done[-1])
    return Narrowing(seen, done, [Site("attention.py", "queries", range(1, 2))], ends)


def test_a_step_that_hands_on_what_does_not_belong_is_no_line_unless_that_helper_is_right_elsewhere(tmp_path):
    alone = narrowed(tmp_path)
    inner, outer, outermost = alone.stack
    assert [alone._handed_on(one) for one in (inner, outer, outermost)] == [False, True, True]
    shared = narrowed(tmp_path, "attend((mx.arange(10.0) + 1) * 6)")
    assert not shared._handed_on(shared.stack[1])


def test_a_step_whose_own_call_hands_out_what_does_not_belong_is_no_line_unless_that_helper_is_sound(tmp_path):
    alone = narrowed(tmp_path)
    makes = next(i for i, one in enumerate(alone.seen.steps) if one.line == 4)
    made = next(i for i, one in enumerate(alone.seen.steps) if one.line == 8)
    assert [alone._handed_out(one) for one in (made, makes, alone.stack[1])] == [False, True, False]
    alone.seen.sound = lambda step: step == made
    assert not alone._handed_out(makes)


@pytest.mark.parametrize("handed", ["_handed_on", "_handed_out"])
def test_what_is_handed_on_or_out_is_not_proven(tmp_path, monkeypatch, handed):
    looked = narrowed(tmp_path)
    monkeypatch.setattr(Narrowing, "_step", lambda self, site, called: looked.stack[1])
    for name in ("_handed_on", "_handed_out", "_meet_within"):
        monkeypatch.setattr(Narrowing, name, lambda self, step: False)
    assert looked._proven(looked.sites[0], ATTEND) == looked.stack[1]
    monkeypatch.setattr(Narrowing, handed, lambda self, step: True)
    assert looked._proven(looked.sites[0], ATTEND) is None


# --- what other lines use rightly ------------------------------------------------------------------------------------

USES = """import mlx.core as mx

def main(given=None):
    q = (mx.arange(10.0) + 1) * 2
    {sine}
    return {use}

def called(q):
    b = mx.sin(q)
    return mx.cos(q)

def sines(q):
    return mx.sin(q)

def sole(q):
    q = q * 1
    return mx.cos(q)
"""


@pytest.mark.parametrize(
    ("use", "sine", "through", "kind"),
    [
        ("mx.cos(q)", "a = mx.sin(q)", (), "line"),
        ("mx.cos(q)", "a = mx.sin(q + 1)", (), "between"),  # nobody else uses it rightly
        (
            "mx.cos(q)",
            "a = mx.sin(q)",
            ("normed",),
            "between",
        ),  # the sine comes of what belongs where the cosine is wrong
        ("called(q)", "a = mx.sin(q)", (), "between"),  # given there, where the sine is used too
        ("sole(q)", "a = mx.sin(q)", (), "between"),
        ("mx.cos(q)", "sines(q)", (), "between"),  # another function does
    ],
)
def test_what_other_lines_use_as_it_is_is_left_out_where_it_is_used(tmp_path, use, sine, through, kind):
    found = watched(tmp_path, USES.format(use=use, sine=sine))
    x = (np.arange(10.0) + 1) * 2
    named = {"q": x, "sine": np.sin(x), "cosine": np.cos(x)}
    named = {key: np.sort(one) for key, one in named.items()}
    known = [name_of(value, named) for value in found.values]
    meant = [Meant({"cosine": "wrong", "": "other"}.get(key, "right"), key, laid=True) for key in known]
    operation = lambda key, *given: Operation("op", x, x, key, frozenset(given))  # noqa: E731
    right = [operation("q"), operation("normed", "q"), operation("sine", *(through or "q"))]
    finding = Finding(found, meant, right, [*right, operation("cosine", "q")])
    first = next(i for i, one in enumerate(found.events) if known[one.value] == "cosine")
    cause = Cause("op", frozenset({"q"}), frozenset({"normed"}), how="left out", key="cosine")
    finding.seen.near = lambda *_: False  # as where it is made in another function
    answer = finding._misplaced(first, found.events[first], cause)
    assert answer.kind == kind
    if kind == "line":
        assert (answer.rule, found.steps[answer.at].line) == ("used", 6)


@pytest.mark.parametrize(("work", "line"), [("make", None), ("attention", 4)])
def test_what_is_right_in_the_references_work_is_no_line_if_what_is_wrong_is_made_elsewhere(tmp_path, work, line):
    """As experts' choices that are right and are not used."""
    looked = narrowed(tmp_path)
    calls = {one.call for one in looked.seen.steps if one.function == work}
    looked.territory.calls = lambda *_: calls
    looked.territory.reference[QUERIES] = {"x", "q", "more"}
    looked._adjacent, looked._made = lambda called: False, lambda site, called: {"q"}
    makes = next(i for i, one in enumerate(looked.seen.steps) if one.line == 4)
    looked._deepest = lambda *_: makes
    step = looked._step(looked.sites[0], QUERIES)
    assert (step if step is None else looked.seen.steps[step].line) == line
