"""pytest tests/test_lines_shown.py — where a port's own code goes wrong, in every rendering of a report."""

import dataclasses
import html as escapes
import inspect
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
import report_examples as examples
from rich.console import Console

from dsv4_mlx import hyper_connection
from parity import pytest_plugin
from parity.candidates.adapters import resolve
from parity.candidates.process import Process
from parity.gate import bundle, filling
from parity.gate.probes import registry
from parity.gate.results import SCHEMA, Candidate, Cell, Place, WrongLine, where
from parity.report import baseline, document, gate_table, html, junit, markdown, sarif, view
from parity.results import Verdict, plain

FILE = "mlx_lm/models/deepseek_v4.py"
LINE, BETWEEN, UNSEEN = examples.wrong_lines()
LIKELY = replace(
    LINE, kind="likely", sentence="likely here: this does what `post` does in the reference", inputs_right=False
)
CODE = {  # what every listing holds, marked or not
    "line": ["> 101 |         y = mx.einsum(", "  103 |         return y + post[..., None] * x"],
    "likely": ["> 101 |         y = mx.einsum("],
    "between": ["> 211 |     scores = q @ k.swapaxes(-1, -2)", "> 215 |     return mx.softmax(scores) @ v"],
    "not seen": [],
}
PLACES = {
    "line": [f"{FILE}:101 in HyperConnection.post"],
    "likely": [f"likely {FILE}:101 in HyperConnection.post"],
    "between": [f"after {FILE}:211 in Attention.core", f"at {FILE}:215 in Attention.core"],
    "not seen": [],
}


def shown(content, width=80, colours=None):
    console = Console(file=io.StringIO(), width=width, color_system=colours, force_terminal=colours is not None)
    gate_table.show(content, console)
    return console.file.getvalue()


def report_of(*lines):
    return replace(examples.diverging(), lines=[*lines])


def with_lines(*lines):
    """The document with these answers, as `json.load` gives it."""
    return json.loads(json.dumps(report_of(*lines).to_dict()))


@pytest.fixture(params=[LINE, LIKELY, BETWEEN, UNSEEN], ids=lambda one: one.kind)
def one(request):
    """An answer of each kind."""
    return request.param


# --- each rendering ------------------------------------------------------------------------------------------


def test_terminal(one):
    text = shown(with_lines(one))
    for part in (*PLACES[one.kind], *CODE[one.kind]):
        assert f"{part}\n" in text
    assert one.sentence in " ".join(text.split())
    assert f"in its own code: {one.mechanism} under oneshot" in text
    assert text.index("Mechanisms, each after") > text.index("in its own code") > text.index("No known defect")


def test_terminal_gives_numbers_where_both_are_known():
    assert "expected y: -1.5, 0.25, 2\n  got y: -1.75, 0.125, 3.5\n" in shown(with_lines(LINE))
    assert "expected" not in shown(with_lines(BETWEEN))


def test_a_place_is_one_word_however_narrow_the_terminal():
    assert f"  {FILE}:101 in HyperConnection.post\n" in shown(with_lines(LINE), 20)


def test_what_is_right_is_no_red():
    text = shown(with_lines(BETWEEN), colours="standard")
    assert re.search(r"\x1b\[32m\s+> 211 ", text)
    assert re.search(r"\x1b\[31m\s+> 215 ", text)


def test_a_place_below_the_current_folder_is_named_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert where(str(tmp_path / "models" / "v4.py"), 7) == "models/v4.py:7"
    assert where("/elsewhere/v4.py", 7) == "/elsewhere/v4.py:7"
    assert where("models/v4.py", 7) == "models/v4.py:7"


MIXING = ["101</b>         y = mx.einsum(", '102</b>             "btji,btjd->btid", comb, streams[:self.n:])']


def test_page(one):
    page = html.page(with_lines(one))
    text = " ".join(escapes.unescape(re.sub("<[^>]*>", "", page)).split())
    assert f"{one.mechanism} under oneshot" in text
    assert one.sentence in text
    for place in PLACES[one.kind]:
        assert place in text
    own = [escapes.unescape(row) for row in re.findall(r'<span class="own"><b>&gt; (.*?)</span>', page)]
    assert (
        own
        == {
            "line": MIXING,
            "likely": MIXING,
            "between": ["211</b>     scores = q @ k.swapaxes(-1, -2)", "215</b>     return mx.softmax(scores) @ v"],
            "not seen": [],
        }[one.kind]
    )
    assert page.count('<pre class="source right">') == (one.kind == "between")
    assert ("<dt>expected y</dt><dd><code>-1.5, 0.25, 2</code></dd>" in page) is bool(one.expected)
    assert page.index("In its own code") < page.index("First deviation")


def test_markdown(one):
    text = markdown.summary(with_lines(one))
    listings = re.findall(r"^```text\n(.*?)\n```$", text, flags=re.S | re.M)
    for line in CODE[one.kind]:
        assert any(line in listing.split("\n") for listing in listings)
    for said in (*PLACES[one.kind], one.sentence):
        assert markdown.text(said) in text
    assert ("expected y: \\-1.5, 0.25, 2  \ngot y" in text) is bool(one.expected)


def test_junit(one):
    suite = ElementTree.fromstring(junit.xml(with_lines(one)))[0]
    told = {(case.get("classname"), case.get("name")): "".join(case.itertext()) for case in suite}
    body = told.pop((f"parity.{one.mechanism}", "oneshot"))
    places = f"{', '.join(PLACES[one.kind])}: " if PLACES[one.kind] else ""
    assert f"in its own code: {places}{one.sentence}\n" in body
    assert all(line in body for line in CODE[one.kind])
    assert not any("in its own code" in text for text in told.values())


def test_plugin(one):
    report = report_of(one)
    (said,) = pytest_plugin._lines(report, (one.mechanism, "oneshot"))
    assert (
        said
        == {
            "line": f"at {FILE}:101: {LINE.sentence}",
            "likely": f"likely at {FILE}:101: {LIKELY.sentence}",
            "between": f"after {FILE}:211, at {FILE}:215: {BETWEEN.sentence}",
            "not seen": UNSEEN.sentence,
        }[one.kind]
    )
    assert pytest_plugin._lines(report, (one.mechanism, "cached")) == []


# --- SARIF ---------------------------------------------------------------------------------------------------


def results_of(content):
    return {one["ruleId"]: one for one in sarif.log(content)["runs"][0]["results"]}


def place_of(result):
    return result["locations"][0]["physicalLocation"]


def test_sarif_points_at_the_statement():
    results = results_of(examples.document("diverging"))
    assert place_of(results["D016"]) == {
        "artifactLocation": {"uri": FILE},
        "region": {
            "startLine": 101,
            "endLine": 102,
            "snippet": {"text": "\n".join(LINE.at.text[2:4])},
        },
    }
    region = place_of(results["attention.sink"])["region"]
    assert (region["startLine"], region["endLine"]) == (211, 215)
    assert region["snippet"]["text"] == "\n".join([*BETWEEN.after.text, *BETWEEN.at.text[1:]])
    for name in ("model.flash", "compressor.overlap", "gap.mtp"):
        assert place_of(results[name])["region"] == {"startLine": 412}
        assert "partialFingerprints" not in results[name]
    for name, said in (("D016", LINE), ("attention.sink", BETWEEN), ("model.flash", UNSEEN)):
        assert results[name]["message"]["text"].endswith(f" In its own code: {said.sentence}.")


@pytest.mark.parametrize("change", [{"file": "other.py"}, {"line": 216, "end": 216}])
def test_sarif_of_a_last_right_value_elsewhere_points_at_the_first_wrong_one(change):
    content = with_lines(BETWEEN)
    content["lines"][0]["after"] |= change
    region = place_of(results_of(content)["attention.sink"])["region"]
    assert region == {"startLine": 215, "endLine": 215, "snippet": {"text": BETWEEN.at.text[2]}}


def test_sarif_snippets_are_whole_or_not_there():
    content = with_lines(BETWEEN)
    content["lines"][0]["after"] |= {"line": 201, "end": 201, "first": 201}
    assert place_of(results_of(content)["attention.sink"])["region"] == {"startLine": 201, "endLine": 215}


def test_sarif_takes_the_answer_that_says_most():
    other = WrongLine("between", "hc.post", "decode", "said", ["D016"], at=Place(FILE, 9, 9, "f", 9, ["x"]))
    assert place_of(results_of(with_lines(other, LINE))["D016"])["region"]["startLine"] == 101
    assert place_of(results_of(with_lines(UNSEEN, other))["D016"])["region"]["startLine"] == 9
    likely = replace(LIKELY, at=replace(LINE.at, line=100))
    assert place_of(results_of(with_lines(other, likely))["D016"])["region"]["startLine"] == 100
    assert place_of(results_of(with_lines(likely, LINE))["D016"])["region"]["startLine"] == 101


def test_sarif_of_what_no_defect_explains_takes_no_line_that_is_about_one():
    content = with_lines(replace(BETWEEN, defects=["D016"]))
    assert place_of(results_of(content)["attention.sink"])["region"] == {"startLine": 412}


def test_sarif_of_a_line_without_a_class_is_a_result():
    content = examples.document("diverging")
    content["candidate"] |= {"source": None, "line": None}
    (run,) = sarif.log(content)["runs"]
    assert [one["ruleId"] for one in run["results"]] == ["D016", "attention.sink"]
    told = [one["associatedRule"]["id"] for one in run["invocations"][0]["toolExecutionNotifications"]]
    assert told == ["compressor.overlap", "indexer.scores", "model.flash", "gap.batch", "gap.mtp"]


def test_sarif_fingerprints_stay_when_the_statement_moves_and_change_with_it():
    def fingerprint(**changes):
        content = with_lines(LINE)
        content["lines"][0]["at"] |= changes
        return results_of(content)["D016"]["partialFingerprints"]["primaryLocationLineHash"]

    moved = [f"    {line}" for line in LINE.at.text]
    assert fingerprint() == fingerprint(line=11, end=12, first=9, text=moved)
    assert len({fingerprint(), fingerprint(function="post"), fingerprint(line=103, end=103)}) == 3


# --- hostile texts, older documents --------------------------------------------------------------------------


def test_hostile_code_is_text_everywhere():
    content = examples.document("hostile")
    jsonschema.validate(content, document.schema(SCHEMA))
    page, text, table = html.page(content), markdown.summary(content), shown(content)
    assert page.count("<script") == page.count("</script>") == 1
    assert "&lt;/code&gt;&lt;/pre&gt;&lt;/script&gt;&lt;script&gt;alert(1)" in page
    assert "> 101 | </code></pre></script><script>alert(1)</script>\n" in table
    assert "> 102 | [/red] x[:key:]\\n~~~\n" in table  # no markup, no picture, one line
    assert f"103 | {'y' * view.WIDE} ...\n" in table
    prose = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.S | re.M)
    assert "alert(1)" not in prose
    blocks = re.findall(r"^(`{3,})text\n(.*?)\n\1$", text, flags=re.S | re.M)
    assert {fence for fence, code in blocks if "| ```" in code} == {"````"}
    assert "alert(1)" in "".join(ElementTree.fromstring(junit.xml(content)).itertext())
    assert "alert(1)" in json.dumps(sarif.log(content))
    for rendering in (page, text, table, junit.xml(content), json.dumps(sarif.log(content), ensure_ascii=False)):
        assert not re.search("[\x1b\u202e\ud800]", rendering)


def test_a_statement_of_many_lines_is_cut():
    long = Place(FILE, 3, 90, "f", 1, [f"line {number}" for number in range(1, 93)])
    rows = view.source(plain(long))
    assert len(rows) == view.SHORT
    assert rows[1:3] == [(2, "line 2", False), (3, "line 3", True)]


def test_an_answer_may_know_one_place_only():
    alone = WrongLine("between", "attention.sink", "oneshot", "said", at=BETWEEN.at)
    assert f"  at {FILE}:215 in Attention.core\n" in shown(with_lines(alone))
    assert f"at {FILE}:215: said" in pytest_plugin._lines(report_of(alone), ("attention.sink", "oneshot"))


def test_a_document_from_before_still_renders_and_serves_as_a_baseline():
    old = examples.document("diverging")
    del old["lines"]
    for text in (shown(old), html.page(old), markdown.summary(old), junit.xml(old), json.dumps(sarif.log(old))):
        assert "n its own code" not in text
    baseline.apply(examples.document("diverging"), old)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(old, document.schema(SCHEMA))


@pytest.mark.parametrize(
    "break_it",
    [
        lambda one: one.update(kind="guess"),
        lambda one: one.update(surplus=1),
        lambda one: one["at"].update(surplus=1),
        lambda one: one["at"].update(line=0),
        lambda one: one["at"].pop("function"),
        lambda one: one.update(expected=[None]),
        lambda one: one.pop("after"),
    ],
)
def test_schema_refuses(break_it):
    content = with_lines(LINE)
    jsonschema.validate(content, document.schema(SCHEMA))
    break_it(content["lines"][0])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, document.schema(SCHEMA))


# --- the bundle's script -------------------------------------------------------------------------------------

PORT = """\
def mixed(x):
    y = x - x
    for factor in (2, 3):
        y = (x
             * factor)
    return y
class Part:
    def __call__(self, x):
        return mixed(x) + 1
"""


@pytest.fixture
def printed(tmp_path, capsys):
    """What the script says of a line of PORT while this is called twice with 0 ... 11."""
    file = tmp_path / "port.py"
    file.write_text(PORT)
    scope = {}
    exec(compile(PORT, str(file), "exec"), scope)

    def run(line, end, function, gives, expected=(), name=str(file)):
        at = Place(name, line, end, function)
        wrong = WrongLine("line", "hc.post", "oneshot", "", at=at, gives=gives, expected=[*expected])
        case = {"wrong": bundle._watched(wrong)}
        before, given = sys.gettrace(), mx.arange(12).reshape(3, 4)
        try:
            exec(bundle.WATCHING.format(telling=bundle.TELLING["mlx"]), {"case": case, "np": np, "mx": mx, "os": os})
            [scope["Part"]()(given) for _ in range(2)]
        finally:
            sys.settrace(before)
        return capsys.readouterr().out.splitlines()

    return run


def test_script_shows_the_value_once_and_after_its_statement(printed, tmp_path):
    at = f"{tmp_path}/port.py:4 y (3, 4):"
    assert printed(4, 5, "mixed", "y") == [f"{at} 0 6 12 16 22"]  # times 2: the first round
    assert printed(4, 5, "mixed", "y", [0.0, 11.0]) == [
        f"{at} 0 22",
        "expected there in the gate's own run, of more tokens perhaps: 0.0 11.0",
    ]
    assert printed(9, 9, "Part.__call__", "return") == [f"{tmp_path}/port.py:9 return (3, 4): 1 10 19 25 34"]


def test_script_says_nothing_of_what_is_not_there(printed):
    assert printed(4, 5, "mixed", "z") == []  # not bound
    assert printed(3, 3, "mixed", "factor") == []  # no array
    assert printed(4, 5, "other", "y") == []
    assert printed(4, 5, "mixed", "y", name="/nowhere/port.py") == []


def test_script_is_given_what_names_a_statement():
    cell = Cell("hc.post", "decode", Verdict.DIVERGES)
    between = WrongLine("between", "hc.post", "decode", "", at=LINE.at, gives="y")
    unseen = WrongLine("not seen", "hc.post", "decode", "")
    assert bundle.wrong_line([unseen, between, LIKELY, LINE, BETWEEN], cell) is LINE
    assert bundle.wrong_line([unseen, between, LIKELY], cell) is LIKELY
    assert bundle.wrong_line([unseen, between, BETWEEN], cell) is between
    assert bundle.wrong_line([unseen, BETWEEN], cell) is None
    assert bundle.wrong_line([WrongLine("line", "hc.post", "decode", "", at=LINE.at)], cell) is None  # gives nothing


def test_bundle_shows_the_line_beside_the_errors(tmp_path):
    right = filling.reference(registry()["embedding"], 0)  # which is kept
    nulls = [null * 1.01 for null in right.nulls]
    family = dataclasses.replace(right, exact=right.exact * 1.01, baseline=right.baseline * 1.01, nulls=nulls)
    source, first = inspect.getsourcelines(hyper_connection.project)
    line = first + next(number for number, text in enumerate(source) if text.startswith("    x = "))
    at = Place(hyper_connection.__file__, line, line, "project")
    wrong = WrongLine("line", "embedding", "oneshot", "", at=at, gives="x", expected=[0.5])
    candidate, cell = Candidate("dsv4_mlx", "dsv4_mlx"), Cell("embedding", "oneshot", Verdict.DIVERGES, "differs")
    with Process(resolve("dsv4_mlx"), tmp_path, 60, 4) as process:
        folder = bundle.write(candidate, process, family, cell, tmp_path / "case", wrong)
    done = subprocess.run(
        [sys.executable, str(folder / "show.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told, expected, *errors, limit = done.stdout.splitlines()
    assert re.fullmatch(rf"{re.escape(hyper_connection.__file__)}:{line} x \(1, \d+, \d+\): \S+", told)
    assert expected.endswith("perhaps: 0.5")
    assert errors[-1].startswith("row 0 token ")
    assert limit.startswith("limit: ")
    script = (folder / "show.py").read_text()
    assert len(script.splitlines()) <= 65
    assert script.index("sys.settrace(trace)") < script.index("feed(ids") < script.index("sys.settrace(None)")
