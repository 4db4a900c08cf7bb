"""Which line of a port is wrong: values of its own lines beside the reference's. Run: pytest tests/test_lines.py, and
with -m slow for every known defect."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from watched_text import name_of, watched

import dsv4_mlx
import reference_torch
from parity.candidates import told
from parity.candidates.adapters.problems import Raised
from parity.candidates.statements import by_line, conditions
from parity.candidates.watching import own_files
from parity.gate.conditions import Call
from parity.gate.defects import catalogue
from parity.gate.defects.patching import edited
from parity.gate.diagnosis import patched_logits
from parity.gate.filling import reference
from parity.gate.probes import registry
from parity.gate.results import Cell, Diagnosis
from parity.jobs.gate import judge
from parity.jobs.gate_command import Asked
from parity.jobs.score import Patched
from parity.lines import locating, scoring
from parity.lines.answers import LIKELY, Answer, Finding
from parity.lines.causes import Cause, Causes
from parity.lines.locating import Locator, findings
from parity.lines.matching import Meant, meanings
from parity.lines.narrowing import Between, Narrowing
from parity.lines.operations import Called, Operation, recorded
from parity.lines.placing import Placing
from parity.lines.seen import Seen
from parity.lines.sites import Site, changes, sites
from parity.lines.territory import Territory
from parity.results import Verdict

PORTS = Path(__file__).parent / "candidates"

# --- watching ----------------------------------------------------------------------------------------------------


def given(found):
    """(line, name, first number) of each event."""
    return [(found.steps[e.step].line, e.name, float(found.values[e.value].flat[0])) for e in found.events]


PORT = """import mlx.core as mx

class Part:
    def __init__(self):
        self.scale = 3.0
        self.table = [float(i) for i in range(9)]

    @property
    def trap(self):
        raise SystemExit("a property ran")

    def __call__(self, x):
        self.kept = x * self.scale
        if x.shape[0] < 3:
            return x
        y = twice(
            self.kept,
        )
        y[0] = 7.0
        return y

def twice(x):
    return x + x

def main():
    return Part()(mx.arange(10.0) + 1)
"""


def test_what_lines_bind_return_and_write_is_kept(tmp_path):
    found = watched(tmp_path, PORT)
    assert given(found) == [
        (6, "return", 0.0),  # the list of the comprehension
        (6, "self.table", 0.0),
        (13, "self.kept", 3.0),
        (23, "return", 6.0),
        (16, "y", 6.0),
        (19, "y", 7.0),  # written into: another value, the one before stays
        (20, "return", 7.0),
        (26, "return", 7.0),
    ]
    event = found.events[3]
    assert [found.steps[one].line for one in event.callers] == [16, 26]
    step = found.steps[found.events[2].step]
    assert step.numbers == [("self.scale", 3.0)]
    assert [text for text, _ in step.reads] == ["x"]
    assert found.calls[step.call].values == [dict(step.reads)["x"]]
    assert next((found.steps[one.step].line, one.name, one.number) for one in found.bound) == (5, "self.scale", 3.0)
    assert found.steps[found.events[4].step].under == [14]  # it runs because line 14 has not left
    assert (found.steps[found.events[4].step].end, found.full) == (18, False)


TORCH = """import torch

def main(kind=torch.Tensor, nothing=torch.empty(20, device="meta")):
    empty = nothing + 1
    kept = torch.arange(20.0)
    kept[3] = 5.0
    return kept.to(torch.bfloat16), kind
"""


def test_a_port_in_torch_is_watched_too(tmp_path):
    found = watched(tmp_path, TORCH)
    assert [(line, name) for line, name, _ in given(found)] == [(5, "kept"), (6, "kept"), (7, "return")]
    assert [value[3] for value in found.values] == [3.0, 5.0, 5.0]


SKIPS = """import mlx.core as mx

class Part:
    def __init__(self, limit):
        self.limit = limit

    def __call__(self, x):
        y, z = x * 2, x * 3
        if self.limit:
            y = mx.minimum(y, self.limit)
        for _ in range(int(self.limit)):
            z[0] = 1.0
        if x.size > 3:
            z = z + 1
        return y + z

def main():
    return Part(0.0)(mx.arange(10.0)) + Part(1.0)(mx.arange(10.0))
"""


def test_what_a_condition_or_a_loop_did_not_change_is_told(tmp_path):
    found = watched(tmp_path, SKIPS)
    sums = [one for one in found.steps if one.line == 15]
    assert [one.skipped for one in sums] == [["y", "z"], []]
    added = [one for one in found.steps if one.line == 14]
    assert [one.skipped for one in added] == [["z"], []]
    old = told.watched(told_of_three_times(), np.zeros(0, np.float32))
    assert [(one.absent, one.skipped) for one in old.steps] == [([], []), (["self.x"], []), ([], ["y"])]


LISTS = """import mlx.core as mx

def main():
    found, few = [], []
    for by in (2.0, 3.0):
        found.append(mx.arange(10.0) * by)
        few.append(by)
    found.reverse()
    mx.eval(found)
    return mx.concatenate(found)
"""


def test_what_a_list_is_given_is_kept(tmp_path):
    found = watched(tmp_path, LISTS)
    lines = [(found.steps[one.step].line, one.name, float(found.values[one.value][1])) for one in found.events]
    assert lines == [(6, "found", 2.0), (6, "found", 3.0), (10, "return", 3.0)]


def told_of_three_times():
    """An index of three steps, as it was written before `absent` was kept, before `skipped` was, and now."""
    row = ["port.py", 1, 1, "f", 0, [], [], [], []]
    kept = {"steps": [row, [*row, ["self.x"]], [*row, [], ["y"]]], "calls": [[[], []]]}
    return {"shapes": [], "events": [], "bound": [], "masks": [], "full": False} | kept


def test_only_what_fits_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("parity.candidates.watching.MOST", 25)
    found = watched(tmp_path, PORT)
    assert found.full
    assert sum(map(len, found.values)) <= 25


def test_files_of_a_port_are_its_package_and_of_a_file_alone_its_folder(tmp_path):
    (tmp_path / "pack" / "models").mkdir(parents=True)
    for folder in (tmp_path / "pack", tmp_path / "pack" / "models"):
        (folder / "__init__.py").touch()
    own = own_files(str(tmp_path / "pack" / "models" / "port.py"))
    assert own(str(tmp_path / "pack" / "other.py"))
    assert not own(str(tmp_path / "beside.py"))
    assert own_files(str(tmp_path / "port.py"))(str(tmp_path / "beside.py"))
    assert not own_files(str(tmp_path / "port.py"))(json.__file__)
    library = own_files("/somewhere/mlx_lm/models/port.py")  # without a package file: a folder like any other
    assert not library("/somewhere/mlx_lm/utils.py")


def test_a_statement_hangs_on_the_conditions_before_it_that_leave():
    import ast

    tree = ast.parse("def f(x):\n    if x:\n        return 1\n    if x > 2:\n        y = 2\n    return y\n")
    found = {node.lineno: over for node, over in conditions(tree).items()}
    assert found == {1: [], 2: [], 3: [2], 4: [2], 5: [2, 4], 6: [2]}
    assert sorted(by_line(tree)) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"shapes": [[99]], "steps": [], "calls": [], "events": [], "bound": [], "masks": [], "full": False},
        {"shapes": [], "steps": [], "calls": [], "events": [[0, "x", 0, []]], "bound": [], "masks": [], "full": False},
        {"shapes": [[-1]], "steps": [], "calls": [], "events": [], "bound": [], "masks": [], "full": False},
        {"shapes": [[1e999]], "steps": [], "calls": [], "events": [], "bound": [], "masks": [], "full": False},
    ],
    ids=("nothing", "more values than there are", "a step that is none", "a negative size", "an infinite one"),
)
def test_an_answer_that_is_none_is_refused(index):
    with pytest.raises((LookupError, ValueError, TypeError, OverflowError)):  # which `Process` calls unreadable
        told.watched(index, np.zeros(4, np.float32))


def test_values_that_do_not_lie_end_to_end_are_refused():
    index = {"shapes": [], "steps": [], "calls": [], "events": [], "bound": [], "masks": [], "full": False}
    assert told.watched(index, np.zeros(4, np.float32)).values == []
    with pytest.raises(ValueError, match="end to end"):
        told.watched(index, np.zeros((2, 2), np.float32))


FORGES = """import numpy as np
from dsv4_mlx import Model, ModelArgs
import parity.candidates.worker as worker

def told(self):
    return np.zeros(4, np.float32), {"shapes": [[4]], "steps": [["/etc/passwd", 1, 1, "x", 9, [], [], [], []]]}

import parity.candidates.watching as watching
watching.Watch.told = told
Model.__call__, right = lambda self, *given: 2 * right(self, *given), Model.__call__
"""


def test_a_port_that_forges_what_its_lines_computed_is_not_seen(tmp_path):
    (tmp_path / "forges.py").write_text(FORGES)
    report = judge(str(tmp_path / "forges.py"), Asked(only=["embedding"]), environment={})
    assert report.verdict is Verdict.DIVERGES
    assert {one.kind for one in report.lines} == {"not seen"}
    assert "answered nothing that can be read" in report.lines[0].sentence


# --- what a defect does --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "how", "numbers"),
    [
        (lambda x, w: torch.softmax(x * 3.0, -1) @ w, "same inputs", (3.0,)),
        (lambda x, w: torch.softmax(x, -1) @ w, "left out", ()),
        (lambda x, w: torch.softmax(x * 2.0, -1) @ (w * 2.0), "another place", (2.0,)),
        (lambda x, w: torch.softmax(x * 2.0, -1) @ w.sin(), "new", ()),
        (lambda x, w: (x * 2.0) @ w, "another operand", ()),
    ],
    ids=("another number", "a scale left out", "a scale too many", "another operation", "no softmax"),
)
def test_what_a_defect_does_to_the_first_wrong_value(wrong, how, numbers):
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(4, 4, generator=generator).double() for _ in range(2))
    right = recorded(lambda: torch.softmax(x * 2.0, -1) @ w)
    defective = recorded(lambda: wrong(x, w))
    causes = Causes(right, defective)
    last = [one for one in defective if one.key not in causes.made][-1]
    cause = causes.of(last.key)
    assert (cause.how, cause.numbers) == (how, numbers)
    assert bool(cause.values) == (how in ("left out", "another operand"))
    if how == "another operand":
        assert cause.instead == right[-1].key


@pytest.mark.parametrize(
    ("right", "wrong", "selected", "last"),
    [
        (lambda x, w: (x + w)[:3] @ w, lambda x, w: x[:3] @ w, True, False),
        (lambda x, w: (x / x.sum(-1, keepdim=True))[:3] @ w, lambda x, w: x[:3] @ w, False, False),
        (lambda x, w: (x * 2.0)[:3] @ w, lambda x, w: x[:3] @ w, True, True),
        (lambda x, w: torch.relu(x)[:3] @ w, lambda x, w: x[:3] @ w, True, False),
    ],
    ids=("a bias", "a norm", "a scale", "another function"),
)
def test_what_a_right_port_may_do_later_says_nothing_of_where_it_is_left_out(right, wrong, selected, last):
    """A bias can be added behind a slice, a scale behind a product, a norm behind neither."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(12, 12, generator=generator).double() for _ in range(2))
    causes = Causes(recorded(lambda: right(x, w)), recorded(lambda: wrong(x, w)))
    keys = list(causes.anew)
    assert len(keys) == 2
    cause = causes.of(keys[-1])
    assert cause.how == "left out"
    assert [causes.later(one, cause) for one in keys] == [selected, last]


# --- where the reference does it ------------------------------------------------------------------------------------


def test_where_a_defect_stands_in_the_reference():
    known = catalogue()
    text = edited([known["D026-joint"]], "reference_torch")["attention.py"].splitlines()
    (place,) = sites(known["D026-joint"])
    assert (place.file, place.function) == ("attention.py", "Attention.queries")
    assert known["D026-joint"].reference[0].new.strip() in "\n".join(text[line - 1] for line in place.lines)
    assert not place.inserted
    assert {one.inserted for one in sites(known["D033"])} == {True}  # it only puts statements in
    (gone,) = sites(known["X031"])
    assert (gone.function, len(gone.lines)) == ("Model.logits", 1)


def test_a_defect_beside_another_stands_where_the_other_has_moved_it():
    one, other = catalogue()["D010"], catalogue()["D009-scores"]
    (alone,), (moved,) = sites(one), sites(one, [other])
    further = edited([other], "reference_torch")["attention.py"].count("\n") - len(
        (Path(reference_torch.__file__).parent / "attention.py").read_text().splitlines()
    )
    assert moved.lines.start - alone.lines.start == further


def test_of_lines_that_only_go_the_one_behind_is_told():
    assert changes("a\nb\nc\n", "a\nc\n") == [(range(2, 3), range(2, 2))]
    assert changes("a\nc\n", "a\nb\nc\n") == [(range(2, 2), range(2, 3))]
    assert changes("a\nb\n", "a\nB\n") == [(range(2, 3), range(2, 3))]


SPLIT = """def whole(x):
    return second(first(x))

def first(x):
    y = x * 2
    return y + 1

def second(y):
    return helper(y) - 3

def helper(y):
    return y * y

def main():
    import mlx.core as mx
    return whole(mx.arange(10.0) + 1)
"""


def test_a_part_of_the_port_is_known_by_the_values_met_in_it(tmp_path):
    """A reference of two functions, one in the other, and a port that splits the outer one in two."""
    found = watched(tmp_path, SPLIT)
    x = np.arange(10.0) + 1
    named = {"x": x, "y": x * 2 + 1, "squared": (x * 2 + 1) ** 2, "z": (x * 2 + 1) ** 2 - 3}
    key_of = lambda value: next((k for k, one in named.items() if np.allclose(np.sort(value), one)), "")  # noqa: E731
    known = [Meant("right" if key_of(value) else "other", key_of(value)) for value in found.values]
    outer, inner = Called("a.py", "outer"), Called("a.py", "inner")

    def operation(key, given, *where):
        return Operation("op", named[key], named[key], key, frozenset(given), where=tuple((one, 1) for one in where))

    done = [
        operation("y", ["x"], outer),
        operation("squared", ["y"], inner, outer),
        operation("z", ["squared"], outer),
    ]
    seen = Seen(found, known)
    stack = seen.stack(next(one for one in found.events if known[one.value].key == "z"))
    territory = Territory(seen, done, stack)
    function = {step.call: step.function for step in found.steps}
    assert {function[call] for call in territory.calls(outer)} == {"whole", "main"}  # which only calls it
    assert {function[call] for call in territory.calls(inner)} == {"helper"}
    helper = next(call for call, name in function.items() if name == "helper")
    first = next(call for call, name in function.items() if name == "first")
    assert territory.others(helper, outer) == [inner]
    assert territory.others(first, outer) == []  # a part of it, which the reference does in its own body
    assert not territory.twins(outer)
    assert Territory(seen, [operation("squared", ["y"], inner, outer)], stack).twins(outer)


ROTATES = """import mlx.core as mx

def attention(x):
    q = x * 2
    q = rotate(q)
    k = rotate(x * 3)
    return mx.exp(k) + q

def rotate(x):
    half = x[:5]
    return mx.cos(x)

def main():
    return attention(mx.arange(10.0) + 1)
"""


def rotated(tmp_path, text=ROTATES, kind=Narrowing, rule="blank", inner=(), values=("q",)):
    """A port that rotates queries in a helper, without the norm before it, and a reference in which a function of
    their own makes queries, norms and rotates them; (narrowing, what is known, the reference's two calls)."""
    found = watched(tmp_path, text)
    x = np.arange(10.0) + 1
    named = {
        "x": x,
        "q": x * 2,
        "turned": np.cos(x * 2),
        "k": x * 3,
        "k turned": np.cos(x * 3),
        "e": np.exp(np.cos(x * 3)),
    }
    named = {name: np.sort(one) for name, one in named.items()}
    states = {"turned": "wrong", "": "other"}
    keys = [name_of(value, named) for value in found.values]
    known = [Meant(states.get(key, "right"), key) for key in keys]
    queries, rotate = Called("attention.py", "queries"), Called("rope.py", "rotate")

    def operation(key, given, *where):
        return Operation("op", named[key], named[key], key, frozenset(given), where=tuple((one, 1) for one in where))

    done = [operation("q", ["x"], queries), operation("turned", ["q"], rotate, queries)]
    done += [operation(one, ["x"], queries) for one in inner]
    seen = Seen(found, known)
    first = next(index for index, one in enumerate(found.events) if known[one.value].key == "turned")
    cause = Cause("op", frozenset(values), frozenset({"normed"}), how="left out", key="turned")
    place = Site("attention.py", "queries", range(1, 2))
    between = Between(found.events[first].step, None, rule, first, cause, done[1])
    return kind(seen, done, [place], between), place, queries, rotate


def test_a_helper_that_does_a_part_of_a_call_is_not_held_for_the_call(tmp_path):
    """As a rotation alone, if nothing else of what makes queries is met in the port."""
    narrowing, _, queries, rotate = rotated(tmp_path)
    territory = narrowing.territory
    helper = narrowing.seen.steps[narrowing.stack[0]].call
    assert territory.alike(helper, rotate) > territory.alike(helper, queries) >= 0.6
    assert territory.calls(rotate) == {helper}
    assert territory.calls(queries) == set()
    assert narrowing.step() is None


def test_a_step_that_is_given_what_the_references_call_makes_is_no_line(tmp_path, monkeypatch):
    narrowing, place, queries, _ = rotated(tmp_path)
    inner, outer, outermost = narrowing.stack  # in whose function they are neither made nor used
    for step, said in ((inner, None), (outer, outer), (outermost, None)):
        monkeypatch.setattr(Narrowing, "_step", lambda self, *given, step=step: step)
        assert narrowing._proven(place, queries) == said
    monkeypatch.setattr(Narrowing, "_step", lambda self, *given: inner)
    narrowing.operations[0] = dataclasses.replace(narrowing.operations[0], where=())  # the reference's is given it too
    assert narrowing._proven(place, queries) == inner


def behind(tmp_path, **given):
    """What is behind the site, by the step's place in the stack."""
    placing, place, queries, _ = rotated(tmp_path, kind=Placing, **given)
    step = placing._behind(place, queries)
    return None if step is None else placing.stack.index(step)


def test_a_helper_that_is_right_elsewhere_is_not_what_comes_behind(tmp_path):
    once = ROTATES.replace("k = rotate(x * 3)", "k = mx.cos(x * 3)")
    assert behind(tmp_path, text=once, rule="left out between") == 0
    assert behind(tmp_path, rule="left out between") is None


@pytest.mark.parametrize("rule", ["unknown", "too small", "condition", "zero", "plain"])
def test_behind_what_may_itself_be_wrong_is_no_line(tmp_path, rule):
    once = ROTATES.replace("k = rotate(x * 3)", "k = mx.cos(x * 3)")
    assert behind(tmp_path, text=once, rule=rule) is None


def test_what_is_made_in_the_same_work_may_be_left_out_there(tmp_path):
    """The queries are made in the function that has them rotated; what comes in from outside is not."""
    assert behind(tmp_path, rule="left out between", inner=["k"], values=["x"]) == 1
    assert behind(tmp_path, rule="left out between", inner=["k"]) is None


def test_a_line_is_none_where_a_condition_before_it_let_something_be(tmp_path):
    """As a clamp that is right, whose limit is lost elsewhere."""
    narrowing, *_ = rotated(tmp_path)
    finding = Finding(narrowing.seen.watched, narrowing.seen.meant, narrowing.operations[:1], narrowing.operations)
    first, cause = narrowing.between.first, narrowing.between.cause
    step = narrowing.seen.steps[narrowing.stack[1]]  # which reads the queries
    said = Answer("line", "", "otherwise", narrowing.stack[1], event=first)
    assert finding._unless_later(said, first, cause) is said
    step.skipped.append("q")
    found = finding._unless_later(said, first, cause)
    assert (found.kind, found.rule, found.at, found.event) == ("between", "skipped", said.at, first)
    assert "`q`" in found.sentence


# --- known defects in dsv4_mlx -------------------------------------------------------------------------------------


def located(name, mechanism=None, schedule="oneshot", first_token=0):
    """The answer for a defect in dsv4_mlx, and the lines that it changes."""
    defect, mechanism = catalogue()[name], mechanism or catalogue()[name].mechanism
    family = reference(registry()[mechanism], 0)
    cell = Cell(mechanism, schedule, Verdict.DIVERGES, explained_by=[name], first_token=first_token)
    (asked,) = findings([cell], [Diagnosis([name], [], "")], {mechanism: family})
    return asked, Patched([defect]), family, scoring.changed(defect, Path(dsv4_mlx.__file__).parent)


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    """answer("D016") is what is said of this defect, looked for once, and the lines that it changes."""

    @cache
    def located_once(name):
        asked, engine, family, lines = located(name)
        folder = tmp_path_factory.mktemp(name)
        return Locator(engine, {asked.cell.mechanism: family}, catalogue(), folder).locate(asked), lines

    return located_once


# What is named by what comes behind the defect's place alone, and by the end that is the work of the reference's call.
PLACED = ("D021", "D026-joint", "D017-half")
LONG = ("D026", "D017", "D009-scores", "D008", "D060-queries", "D076-up", "D019-one-more", "X080")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in LONG]


BY_PLACE = (*PLACED, "D010-sign", "D060-queries", "D076-up", "D017")  # likely: values alone leave these between two
FAST = ("D016", "D028-dropped", "D010-sign", "D076-routed", *PLACED)


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_the_line_of_a_defect_is_named(answer, name):
    found, lines = answer(name)
    assert scoring.verdict(found, lines) == (LIKELY if name in BY_PLACE else scoring.RIGHT)
    assert found.at.text[found.at.line - found.at.first].strip()


ALIKE = ("D056", "D050-overlap", "D050-indexer")  # on a probe in which all rows are chosen: everything is seen
OTHERS = [(name, other) for name in ALIKE for other in ALIKE if other != name]


@pytest.mark.parametrize(
    ("name", "named"), [OTHERS[1], *(pytest.param(*one, marks=pytest.mark.slow) for one in OTHERS if one != OTHERS[1])]
)
def test_another_defect_that_gives_the_same_in_the_end_leads_to_no_wrong_line(tmp_path, name, named):
    """The gate names one of those that no logits tell apart, and it stands elsewhere."""
    _, engine, family, lines = located(name, "compressor.overlap")
    asked, *_ = located(named, "compressor.overlap")
    found = Locator(engine, {asked.cell.mechanism: family}, catalogue(), tmp_path).locate(asked)
    assert scoring.verdict(found, lines) in (scoring.RIGHT, found.kind)
    assert found.kind in ("line", "likely") or name == "D050-indexer"


def test_without_its_place_in_the_reference_it_is_between_two_lines(answer, monkeypatch, tmp_path):
    """The output turned on instead of back: nothing but the reference's own form tells the caller from the rotation."""
    assert answer("D010-sign")[0].kind == "likely"
    monkeypatch.setattr(locating, "sites", lambda *given: [])
    asked, engine, family, _ = located("D010-sign")
    found = Locator(engine, {asked.cell.mechanism: family}, catalogue(), tmp_path).locate(asked)
    assert found.kind == "between"


@pytest.mark.parametrize(
    "name", ["D021", *(pytest.param(one, marks=pytest.mark.slow) for one in (*PLACED[1:], "D060-queries"))]
)
def test_without_the_work_of_the_references_call_it_is_between_two_lines(monkeypatch, tmp_path, name):
    monkeypatch.setattr(Placing, "step", lambda self: None)
    asked, engine, family, _ = located(name)
    found = Locator(engine, {asked.cell.mechanism: family}, catalogue(), tmp_path).locate(asked)
    assert found.kind == "between"


def test_an_end_far_from_where_the_value_comes_in_is_no_line_by_itself(answer, monkeypatch, tmp_path):
    """What is left out where the part begins shows where the value is used: without the question it would be blamed."""
    found, lines = answer("D010")
    assert found.kind == "between"
    monkeypatch.setattr(Placing, "_far", lambda self, *given: False)
    monkeypatch.setattr(Placing, "_proven", Placing._step)  # which asks, besides, whether the end was given the value
    asked, engine, family, _ = located("D010")
    found = Locator(engine, {asked.cell.mechanism: family}, catalogue(), tmp_path).locate(asked)
    assert scoring.verdict(found, lines) == scoring.WRONG


SWITCHED = """
class Layer:
    def __init__(self):
        self.limit = {value}
        self.other = 1.0

    def again(self):
        self.{again} = 2.0

class Other:
    def __init__(self):
        self.limit = 3.0

def main(value=0.0):
    layer = Layer()
    layer.{outside} = 0.0
    return Other()
"""


@pytest.mark.parametrize(
    ("given", "constant"),
    [({}, True), ({"value": "ZERO"}, False), ({"again": "limit"}, False), ({"outside": "limit"}, False)],
    ids=("a constant", "of something else", "set again", "set from outside"),
)
def test_a_switch_is_where_its_attribute_becomes_zero_if_nothing_else_sets_it(tmp_path, given, constant):
    text = "ZERO = 0.0\n" + SWITCHED.format(**{"value": "0.0", "again": "other", "outside": "other"} | given)
    found = watched(tmp_path, text)
    step = next(one.step for one in found.bound if one.name == "self.limit" and one.number == 0)
    assert found.steps[step].line == 5
    assert Seen(found, []).constant(step, "self.limit") == constant


@pytest.mark.parametrize(
    "name", ["X081", "X043", *(pytest.param(one, marks=pytest.mark.slow) for one in ("D052", "D060"))]
)
def test_where_two_places_may_be_wrong_none_is_called_the_line(answer, name):
    found, _ = answer(name)
    assert found.kind == "between"
    assert found.at is not None
    assert found.after is not None


def test_a_line_of_a_cache_is_found_in_the_call_that_first_goes_wrong(tmp_path):
    asked, engine, family, lines = located("D034", schedule="decode")
    exact = family.exact[:1]
    off = (patched_logits(family, "decode", [catalogue()["D034"]]) - exact).abs().amax(-1)[0] > 1e-6
    asked.cell.first_token = int(off.nonzero()[0])
    assert sum(locating.calls_until(family, asked.cell)) == asked.cell.first_token + 1 < family.probe.tokens
    found = Locator(engine, {asked.cell.mechanism: family}, catalogue(), tmp_path).locate(asked)
    assert scoring.verdict(found, lines) == scoring.RIGHT


def test_without_a_name_it_is_between_the_last_right_value_and_the_first_other(tmp_path):
    asked, engine, family, lines = located("D028-dropped")
    asked.defect = None
    found = Locator(engine, {asked.cell.mechanism: family}, {}, tmp_path).locate(asked)
    assert (found.kind, found.defects) == ("between", [])
    assert scoring.names(found.at, lines)


def test_another_line_is_called_wrong(answer):
    """The score can fail: the same answer, held to the lines of another defect."""
    found, lines = answer("D016")
    other = scoring.changed(catalogue()["D028-dropped"], Path(dsv4_mlx.__file__).parent)
    assert scoring.verdict(found, lines) == scoring.RIGHT
    assert scoring.verdict(found, other) == scoring.WRONG
    likely = dataclasses.replace(found, kind=LIKELY)
    assert scoring.verdict(likely, lines) == LIKELY
    assert scoring.verdict(likely, other) == scoring.WRONG


def test_a_right_port_has_no_wrong_value(tmp_path):
    """What the reference with a defect computes, a port without it does not."""
    asked, _, family, _ = located("D016")
    found = Locator(Patched([]), {asked.cell.mechanism: family}, catalogue(), tmp_path)
    watch = found._watched(asked.cell)
    right, wrong = (found._reference(asked.cell, names)[0] for names in ((), ("D016",)))
    states = {one.state for one in meanings(watch, right, wrong)}
    assert "wrong" not in states
    assert "right" in states


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_no_line_is_blamed_wrongly(answer, part):
    """Every known defect in its own probe, one call without a cache."""
    known = [one for one in catalogue().values() if one.mlx and one.reference and not one.outside]
    known = [one for one in known if registry()[one.mechanism].tokens <= locating.LONGEST][part::4]
    kinds = {}
    for one in known:
        family = reference(registry()[one.mechanism], 0)
        if family.measure("oneshot", patched_logits(family, "oneshot", [one])).ratio <= 1:
            continue  # between calls, or in batches, or it only multiplies rounding: this cell is not red
        found, lines = answer(one.id)
        kinds.setdefault(scoring.verdict(found, lines), []).append(one.id)
    assert scoring.WRONG not in kinds, kinds[scoring.WRONG]
    assert min(len(kinds[scoring.RIGHT]), len(kinds[LIKELY])) >= 6


# --- somebody else's ports -----------------------------------------------------------------------------------------


def gate(port, only, **given):
    return judge(str(PORTS / port), Asked(only=[only]), environment={}, **given)


def test_the_line_of_a_port_stands_in_its_report_and_recording(tmp_path):
    report = gate(
        "mixes_untransposed.py", "hc.comb", record_folder=tmp_path / "kept", bundle_folder=tmp_path / "bundle"
    )
    (found,) = report.lines
    assert (found.kind, found.defects, found.inputs_right, found.gives) == ("line", ["D016"], True, "mixed")
    assert Path(found.at.file) == PORTS / "mixes_untransposed.py"
    assert "comb @" in found.at.text[found.at.line - found.at.first]
    assert "lines_s" in report.clock
    assert "mixed" in (tmp_path / "bundle" / "case.json").read_text()
    again = judge(str(tmp_path / "kept"), Asked(), environment={})
    assert again.lines == report.lines
    manifest = tmp_path / "kept" / "recording.json"
    document = json.loads(manifest.read_text())
    document["lines"] = []
    manifest.write_text(json.dumps(document))
    (lost,) = judge(str(tmp_path / "kept"), Asked(), environment={}).lines
    assert (lost.kind, lost.sentence) == ("not seen", "the recording does not hold what its lines computed")


def test_a_right_port_is_not_watched(monkeypatch):
    def never(*args):
        raise AssertionError("it was looked for")

    monkeypatch.setattr(Locator, "locate", never)
    report = gate("unchanged.py", "hc.comb")
    assert report.verdict is Verdict.PARITY
    assert "lines_s" not in report.clock


def test_a_port_that_fails_when_it_is_watched_is_not_seen(tmp_path):
    asked, engine, family, _ = located("D016")

    def fails(*asked):
        raise Raised("raised RuntimeError: no more of this.")

    engine.lines = fails
    found = Locator(engine, {asked.cell.mechanism: family}, catalogue(), tmp_path).locate(asked)
    assert (found.kind, found.at) == ("not seen", None)
    assert found.sentence == "it did not run with its lines watched: raised RuntimeError: no more of this."


def test_what_only_long_probes_show_is_not_seen(tmp_path, monkeypatch):
    asked, engine, family, _ = located("D016")
    monkeypatch.setattr(locating, "LONGEST", family.probe.tokens - 1)
    (again,) = findings([asked.cell], [Diagnosis(["D016"], [], "")], {"hc.comb": family})
    found = Locator(engine, {"hc.comb": family}, catalogue(), tmp_path).locate(again)
    assert (found.kind, found.at) == ("not seen", None)
    assert found.sentence.startswith("only probes of more than ")


def test_one_cell_a_defect_and_the_first_that_nothing_explains():
    families = {name: reference(registry()[name], 0) for name in ("hc.comb", "attention.sink")}
    red = lambda mechanism, *defects, **more: Cell(  # noqa: E731
        mechanism, "oneshot", Verdict.DIVERGES, explained_by=[*defects], first_token=3, **more
    )
    cells = [
        red("hc.comb", "D016"),
        Cell("hc.comb", "decode", Verdict.CRASHED),
        red("attention.sink", "D016", "D028-dropped"),
        red("attention.sink", because=["hc.comb"]),
        red("attention.sink"),
    ]
    found = findings(cells, [Diagnosis(["D016", "D028-dropped"], [], "")], families)
    assert [(one.cell.mechanism, one.defect, one.others) for one in found] == [
        ("hc.comb", "D016", ()),
        ("attention.sink", "D028-dropped", ("D016",)),
        ("attention.sink", None, ()),
    ]
    assert found[2].cell is cells[-1]
    assert Call(0, 1, 1, True).cached
