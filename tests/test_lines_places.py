"""Where all that may be to blame for a wrong value is one place: conditions, and what the reference does not know, near
it. Run: pytest tests/test_lines_places.py"""

import numpy as np
import pytest
from watched_text import name_of, watched

from parity.lines.answers import Answer, Finding
from parity.lines.causes import Cause
from parity.lines.locating import texts
from parity.lines.matching import Meant
from parity.lines.operations import Operation

X = np.arange(10.0) + 1
NAMED = {"x": X, "q": X * 2, "wrong": X * 8 + 3}


def finding(tmp_path, text, said=frozenset(), call="main()"):
    """What is looked at for a text, whose values are right, of no reference's, or, `wrong`, the defect's alone."""
    found = watched(tmp_path, "import mlx.core as mx\n" + text, call)
    keys = [name_of(value, NAMED) for value in found.values]
    state = lambda key, one: {"wrong": "wrong", "": "plain" if np.ptp(one) == 0 else "other"}.get(key, "right")  # noqa: E731
    meant = [Meant(state(key, one), key, laid=True) for key, one in zip(keys, found.values, strict=True)]
    done = [Operation("op", NAMED[key], NAMED[key], key, frozenset()) for key in ("x", "q", "wrong")]
    return Finding(found, meant, done[:2], done, texts=said)


def first_wrong(found):
    """The first event that gives what the defect makes."""
    return next(one for one in found.watched.events if found.meant[one.value].state == "wrong")


# --- conditions ----------------------------------------------------------------------------------------------------

ASKS = """
class Part:
    kind, limit, weight = "sum", 4.0, mx.ones(10)

    def __call__(self, x, flag=None):
        if {asked}:
            return x
        return x * 8 + 3

    def asks(self):
        return False

def main():
    part = Part()
    part.kind, part.limit, part.weight = Part.kind, Part.limit, Part.weight
    return part(mx.arange(10.0) + 1)
"""


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        ('self.kind == "max"', [("self.kind", "sum")]),
        ("self.limit < 0", [("self.limit", "")]),
        ("flag is not None", [("flag", "")]),
        ("self.asks()", [("self", "")]),
        ("self.weight is None or mx.any(x < 0)", []),
        ("self.weight is None and flag is None", []),  # the second is not asked
        ("flag is not None and self.weight is None", []),
        ("flag is None and self.weight is None", []),
        ("not (self.weight is not None or flag)", [("flag", "")]),
        ("self.weight is None or flag is not None", [("flag", "")]),
        ("self.weight is None or self.limit is None", [("self.limit", "")]),
        ("self.weight is x and flag is not None", [("flag", "")]),
        ("False", []),
    ],
)
def test_what_a_condition_reads_that_is_no_array_is_told(tmp_path, asked, read):
    found = finding(tmp_path, ASKS.format(asked=asked))
    step = found.watched.steps[first_wrong(found).step]
    assert (step.under, step.tested) == ([7], [(7, read)])


@pytest.mark.parametrize(
    ("asked", "open_"),
    [
        ('self.kind == "max"', False),  # what the config says
        ('self.kind == "max" or self.limit < 0', True),  # which may have been set wrongly
        ("flag is not None", True),
        ("self.asks()", True),
        ("False", False),
        ("self.weight is None", False),
    ],
)
def test_a_condition_is_open_if_something_else_may_have_decided_it(tmp_path, asked, open_):
    found = finding(tmp_path, ASKS.format(asked=asked), {"sum"})
    assert found.seen.conditions_open(first_wrong(found).step, [7]) is open_


def test_a_condition_far_away_or_that_did_not_run_is_open(tmp_path):
    asks = ASKS.format(asked="False").replace("        return x * 8", "{}        return x * 8")
    for lines, open_ in ((0, False), (1, False), (2, True)):
        found = finding(tmp_path, asks.format("\n" * lines))
        assert found.seen.conditions_open(first_wrong(found).step, [7]) is open_
    words = ASKS.format(asked='self.kind == "max"').replace("        return x * 8", "\n\n\n\n        return x * 8")
    found = finding(tmp_path, words, {"sum"})
    step = first_wrong(found).step
    assert not found.seen.conditions_open(step, [7])  # decided by the config's own words, wherever it stands
    assert found.seen.conditions_open(step, [7, 8])
    assert found.seen.conditions_open(step, [])


def test_what_a_config_says_in_words_is_known():
    assert texts({"a": "sum", "b": 3, "c": {"d": ["max", None]}}) == {"sum", "max"}


@pytest.mark.parametrize(("asked", "kind"), [("False", "line"), ("flag is not None", "between")])
def test_a_new_operation_on_a_condition_is_the_line_if_nothing_else_decides_it(tmp_path, asked, kind):
    found = finding(tmp_path, ASKS.format(asked=asked))
    said = found._otherwise(0, first_wrong(found), Cause("op", how="new", inputs=frozenset({"x"})))
    assert (said.kind, found.watched.steps[said.at].line) == (kind, 9)


OUTER = """
def inner(x):
    return x * 8 + 3

def main():
    x = mx.arange(10.0) + 1
    return outer(x)

def outer(x):
    if False:
        return x
    return inner(x)
"""


def test_on_a_condition_further_out_a_new_operation_is_no_line(tmp_path):
    found = finding(tmp_path, OUTER)
    said = found._otherwise(0, first_wrong(found), Cause("op", how="new", inputs=frozenset({"x"})))
    assert (said.kind, said.rule) == ("between", "condition")


@pytest.mark.parametrize(
    ("how", "of", "rule"),
    [
        ("new", "x", "otherwise"),
        ("new", "table", "given it"),  # as a rotation by a fixed matrix: it may be that nobody should have called it
        ("another place", "x", "given it"),
        ("another operation", "table", "otherwise"),
    ],
)
def test_an_operation_on_a_table_of_its_own_may_be_wrong_where_it_is_called(tmp_path, how, of, rule):
    found = finding(tmp_path, OUTER.replace("    if False:\n        return x\n", ""))
    said = found._otherwise(0, first_wrong(found), Cause("op", how=how, inputs=frozenset({of})))
    assert said.rule == rule


SKIPS = """
def main(limit=0.0):
    q = (mx.arange(10.0) + 1) * 2
    if {asked}:
        q = q + 1
    {gap}return q * 4 + 3
"""


@pytest.mark.parametrize(
    ("asked", "gap", "how", "kind"),
    [
        ("limit > 0", "", "left out", "between"),
        ("limit > 0", "", "same inputs", "line"),  # the right reference reads the same there
        ("limit > 0", "", "another operation", "line"),
        ("False", "", "left out", "line"),
        ("False", "\n\n\n    ", "left out", "between"),
        ("False", "q = (mx.arange(10.0) + 1) * 2\n    ", "left out", "line"),  # bound anew: nothing was skipped
        ("limit > 0", "q = (mx.arange(10.0) + 1) * 2\n    ", "left out", "line"),
    ],
)
def test_what_was_skipped_counts_where_what_is_read_does_not_belong_there(tmp_path, asked, gap, how, kind):
    found = finding(tmp_path, SKIPS.format(asked=asked, gap=gap))
    event = first_wrong(found)
    first = found.watched.events.index(event)
    values = frozenset({"q"} if how == "left out" else ())
    cause = Cause("op", values, how=how, inputs=frozenset({"q"}), key="wrong")
    assert found._unless_later(Answer("line", "", "left out", event.step), first, cause).kind == kind


NUMBERS = """
def main(by=1, more=1.0):
    return weigh((mx.arange(10.0) + 1) * 2, by, more)

def weigh(q, by, more, two=2.0):
    x = {made}
    {gap}q = x * 2
    return (q * {by}) * 4 + 3
"""


@pytest.mark.parametrize(
    ("by", "made", "gap", "kind"),
    [
        ("1", "q / 2", "", "line"),
        ("by", "q / 2", "", "between"),  # what was given may be the mistake
        ("1", "q / 2 * more", "", "between"),
        ("1", "q / two", "", "line"),
        ("1", "q / 2 * more", "\n\n\n    ", "line"),
    ],
)
def test_what_a_given_one_leaves_as_it_was_may_be_left_out_where_it_is_chosen(tmp_path, by, made, gap, kind):
    found = finding(tmp_path, NUMBERS.format(by=by, made=made, gap=gap))
    event = first_wrong(found)
    first = found.watched.events.index(event)
    found.seen.maker = lambda keys, before: event.step  # q is made beside
    cause = Cause("op", frozenset({"q"}), frozenset({"more"}), how="left out", key="wrong")
    said = found._misplaced(first, event, cause)
    assert (said.kind, said.at) == (kind, event.step)
    if kind == "between":
        assert "is 1 here" in said.sentence


@pytest.mark.parametrize(("by", "kind"), [("1", "line"), ("by", "between")])
def test_a_number_that_was_given_may_be_to_blame_where_nothing_was_made_before(tmp_path, by, kind):
    found = finding(tmp_path, NUMBERS.format(by=by, made="q / 2", gap=""))
    event = first_wrong(found)
    cause = Cause("op", frozenset({"none"}), frozenset({"more"}), how="left out", key="wrong")
    said = found._misplaced(found.watched.events.index(event), event, cause)
    assert (said.kind, said.at) == (kind, event.step)
    assert (said.rule == "told") is (kind == "between")


# --- what the reference does not know, near the wrong value --------------------------------------------------------

TOGETHER = """
ONE = 1.0

def main(more=7.0, flag=True, few=mx.array([1.0])):
    q = (mx.arange(10.0) + 1) * 2
    y = {made}
    {gap}y = y + 1
    return {use}

def helper(y):
    return y - 1

def square(q):
    return q * q
"""


def lines_together(tmp_path, made="q * q", gap="", use="(y - 1) / q * 4 + 3", call="main()"):
    found = finding(tmp_path, TOGETHER.format(made=made, gap=gap, use=use), call=call)
    return sorted(found.watched.steps[one].line for one in found.seen.together(first_wrong(found)))


def test_what_is_made_of_right_values_alone_in_one_place_is_one_place(tmp_path):
    assert lines_together(tmp_path) == [7, 8, 9]
    assert lines_together(tmp_path, made="q * q * ONE") == [7, 8, 9]


@pytest.mark.parametrize(
    "given",
    [
        {"gap": "\n\n    "},  # the first of them stands too far away
        {"made": "q * q + more - 7", "call": "main(7.0)"},  # a number that was given
        {"made": "q * q if flag else q"},
        {"made": "q * q * few"},  # too few numbers to tell
        {"made": "mx.zeros(10)", "use": "(y - 1) + q * 4 + 3"},  # the same everywhere
        {"use": "square(q) / q * 4 + 3"},
        {"use": "(helper(y)) / q * 4 + 3", "made": "helper(q * q + 1)"},  # made in another function
    ],
)
def test_what_may_come_from_elsewhere_is_not_one_place(tmp_path, given):
    assert lines_together(tmp_path, **given) == []


def test_the_line_of_one_place_says_which_others_it_may_be(tmp_path):
    found = finding(tmp_path, TOGETHER.format(made="q * q", gap="", use="(y - 1) / q * 4 + 3"))
    found.causes = replace_causes(found.causes)
    answer = found.answer()
    assert (answer.kind, found.watched.steps[answer.at].line) == ("line", 9)
    assert answer.sentence.endswith("what is read there is made in line 7 and 8, which may be it as well")
    assert not answer.inputs_right


def test_a_line_further_out_than_the_place_is_none(tmp_path):
    found = finding(tmp_path, TOGETHER.format(made="q * q", gap="", use="(y - 1) / q * 4 + 3"))
    event = first_wrong(found)
    found._otherwise = lambda *_: Answer("line", "", "otherwise", event.step - 1)
    assert found._together(0, event, Cause("op"), [event.step]) is None


def test_an_operation_on_what_is_the_same_everywhere_is_no_line_though_it_is_one_place(tmp_path):
    found = finding(tmp_path, TOGETHER.format(made="q", gap="", use="q * 4 + 3"))
    found.causes = replace_causes(found.causes, plain=True, values=frozenset({"q"}))
    answer = found.answer()
    assert (answer.kind, answer.rule) == ("between", "plain")


def replace_causes(causes, **given):
    """Causes whose every value comes of another operation on the same."""
    causes.of = lambda key: Cause("op", how="another operation", key=key, **given)
    return causes


BRANCH = """
def main(more=7.0):
    q = (mx.arange(10.0) + 1) * 2
    y, z = 0, 0
    if more > 0:
        y = q * q
        {beside}
        return y / q * 4 + 3
"""


@pytest.mark.parametrize(("beside", "lines"), [("pass", []), ("z = q + 0", [7, 9]), ("z = q * 3", [])])
def test_a_condition_on_which_something_else_is_right_was_decided_rightly(tmp_path, beside, lines):
    found = finding(tmp_path, BRANCH.format(beside=beside))
    assert sorted(found.watched.steps[one].line for one in found.seen.together(first_wrong(found))) == lines


def test_what_a_condition_skipped_may_belong_there(tmp_path):
    text = SKIPS.format(asked="limit > 0", gap="y = q * q\n    ").replace("q * 4", "y / q * 4")
    assert finding(tmp_path, text).seen.together(first_wrong(finding(tmp_path, text))) == []


# --- a helper that is right elsewhere ------------------------------------------------------------------------------

CALLED = """
class Sets:
    def __init__(self):
        self.by = 8

    def run(self, x):
        return helper(x, self.by) + 3

class Told:
    def __init__(self, by):
        self.by = by

    def run(self, x):
        return helper(x, self.by) + 3

def helper(x, by):
    return x * by

def one(x):
    return helper(x, 2)

def main(flag=False, by=1, kept=Sets()):
    x = mx.arange(10.0) + 1
    one(x)
    return {call}
"""


@pytest.mark.parametrize(
    ("call", "kind", "line"),
    [
        ("helper(x, 8) + 3", "line", 26),
        ("helper(x, by if flag else 8) + 3", "between", 18),
        ("Sets().run(x)", "line", 8),  # a statement of its class sets it, and no other does
        ("Told(8).run(x)", "between", 18),
        ("(Told(8), Sets())[1].run(x)", "between", 18),  # two set what is called so: which one is not told
        ("helper(x, kept.by) + 3", "between", 18),  # nobody saw it set
    ],
)
def test_a_helper_right_elsewhere_is_called_with_what_is_not_for_it(tmp_path, call, kind, line):
    found = finding(tmp_path, CALLED.format(call=call))
    inner = next(i for i, one in enumerate(found.watched.events) if found.watched.values[one.value][1] == 16)
    event = found.watched.events[inner]
    said = found._misplaced(inner, event, Cause("op", frozenset({"none"}), frozenset({"other"}), how="left out"))
    assert (said.kind, found.watched.steps[said.at].line) == (kind, line)
