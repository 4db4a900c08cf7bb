"""pytest tests/test_report_renderings.py — Markdown, JUnit and SARIF, each parsed again."""

import html
import re
from xml.etree import ElementTree

import pytest
import report_examples as examples

from parity.errors import BadInput
from parity.report import document, junit, markdown, sarif


def table(text):
    """The cells of a Markdown table, as GitHub splits them."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [[part.strip() for part in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_markdown_says_verdict_diagnosis_matrix_gaps_and_command():
    content = examples.document("diverging")
    text = markdown.summary(content)
    assert text.startswith("## mlx\\_lm/models/deepseek\\_v4.py: diverges (exit 1)")
    assert text.index("behaves exactly like") < text.index("| mechanism")
    head, rule, *rows = table(text)
    assert head == ["mechanism", *examples.SCHEDULES]
    assert len(rule) == len(head)
    assert [row[0] for row in rows] == [row.name for row in examples.ROWS]
    assert all(len(row) == len(head) for row in rows)
    assert rows[3][1:] == ["**✖ 41**", "**✗ 41**", "**✗ 41**", "**✗ 41**", "–"]
    assert "```text\nparity gate mlx_lm/models/deepseek_v4.py --profile quick --seed 0\n```" in text
    assert "- mtp: the candidate has no MTP layer (required)" in text


def test_markdown_of_nothing_judged_has_no_table():
    text = markdown.summary(examples.document("environment"))
    assert table(text) == []
    assert "environment (exit 3)" in text


def test_markdown_shows_hostile_text_as_text():
    content = examples.document("hostile")
    content["schedules"] = ["one|shot", *content["schedules"][1:]]
    text = markdown.summary(content)
    prose = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.S | re.M)
    assert set(re.findall(r"<[^>]*>", prose)) == {"<sub>", "</sub>"}
    assert not re.search(r"(?<!\\)[`]|@|http://|www\.|\x1b|\u202e", prose)
    head, *rows = table(text)
    assert all(len(row) == len(head) == 6 for row in rows)
    # The code block's fence is longer than the fence that the formula holds.
    assert re.search(r"^````text\n.*\n```\n````$", text, flags=re.S | re.M)
    assert "<script>" in html.unescape(prose)
    assert len(text) < 20_000


@pytest.mark.parametrize("name", examples.ALL)
def test_junit_counts_are_those_of_its_cases(name):
    content = examples.document(name)
    suites = ElementTree.fromstring(junit.xml(content))
    (suite,) = suites
    cases = suite.findall("testcase")
    for element in (suites, suite):
        assert int(element.get("tests")) == len(cases)
        for attribute, child in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(element.get(attribute)) == len(suite.findall(f"testcase/{child}"))
    red = suite.findall("testcase/failure") + suite.findall("testcase/error")
    assert bool(red) == (content["verdict"] != "parity")


def test_junit_has_one_case_a_cell():
    content = examples.document("diverging")
    suite = ElementTree.fromstring(junit.xml(content))[0]
    cases = {(case.get("classname"), case.get("name")): case for case in suite}
    assert len(cases) == len(content["cells"]) + 1
    failure = cases["parity.hc.post", "oneshot"].find("failure")
    assert failure.get("message") == "logits differ from token 5 on: RMS error 1.64e-02"
    assert "behaves exactly like the reference with D016" in failure.text
    assert "The limit is 2 (factor)" in failure.text
    assert "may only follow from attention.sink" in cases["parity.model.flash", "oneshot"].find("failure").text
    assert cases["parity.compressor.overlap", "chunks"].find("error").get("message").startswith("ValueError")
    assert cases["parity.embedding", "batch"].find("skipped").get("message") == "takes one row at a time"
    assert len(cases["parity.embedding", "oneshot"]) == 0
    assert cases["parity.required", "mtp"].find("failure") is not None
    assert suite.get("time") == "41.370"


def test_junit_of_nothing_judged_is_an_error():
    (case,) = ElementTree.fromstring(junit.xml(examples.document("environment")))[0]
    assert case.find("error").get("type") == "environment"


def test_junit_keeps_hostile_text_as_text():
    suites = ElementTree.fromstring(junit.xml(examples.document("hostile")).encode("utf-8"))
    assert "<script>alert('x')</script>" in suites.get("name")
    assert "\x1b" not in "".join(suites.itertext())


def test_sarif_points_at_the_class(tmp_path):
    log = sarif.log(examples.document("diverging"), tmp_path)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert rules == [
        "D016",
        "attention.sink",
        "compressor.overlap",
        "indexer.scores",
        "model.flash",
        "gap.batch",
        "gap.mtp",
    ]
    levels = {}
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        levels[result["ruleId"]] = result["level"]
        place = result["locations"][0]["physicalLocation"]
        if "partialFingerprints" in result:  # its own line is known: tests/test_lines_shown.py
            continue
        assert place == {
            "artifactLocation": {"uri": "mlx_lm/models/deepseek_v4.py"},
            "region": {"startLine": 412},
        }
    assert levels["D016"] == levels["attention.sink"] == levels["compressor.overlap"] == levels["gap.mtp"] == "error"
    assert levels["gap.batch"] == "note"
    defect = run["results"][0]["message"]["text"]
    assert "behaves exactly like" in defect
    assert "It should read: y[t, i] = sum_j" in defect


@pytest.mark.parametrize(
    ("source", "uri"),
    [
        ("models/a port.py", "models/a%20port.py"),
        ("{folder}/models/v4.py", "models/v4.py"),
        ("../elsewhere/v4.py", "file://{parent}/elsewhere/v4.py"),
    ],
)
def test_sarif_uris(tmp_path, source, uri):
    content = examples.document("diverging")
    content["candidate"]["source"] = source.format(folder=tmp_path)
    content["lines"] = []
    results = sarif.log(content, tmp_path)["runs"][0]["results"]
    found = {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in results}
    assert found == {uri.format(parent=tmp_path.parent)}


def test_sarif_without_a_source_has_notifications_instead_of_results():
    content = examples.document("environment")
    (run,) = sarif.log(content)["runs"]
    assert run["results"] == []
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["message"]["text"] == content["sentence"]


def test_sarif_of_parity_is_empty():
    (run,) = sarif.log(examples.document("parity"))["runs"]
    assert run["results"] == []
    assert run["invocations"] == [{"executionSuccessful": True}]


def test_a_folder_may_vanish_before_the_report_is_written(tmp_path):
    target = tmp_path / "reports" / "report.json"
    target.parent.mkdir()
    document.check_target(str(target))
    target.parent.rmdir()
    with pytest.raises(BadInput, match=r"report\.json cannot be written"):
        document.write_text("{}", str(target))
