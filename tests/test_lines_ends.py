"""Which of two ends is the line, where the port does the reference's call without a function of its own. Run: pytest
tests/test_lines_ends.py"""

import numpy as np
import pytest
from watched_text import name_of, watched

from parity.lines.answers import Finding
from parity.lines.causes import Cause
from parity.lines.matching import Meant
from parity.lines.narrowing import Between
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
