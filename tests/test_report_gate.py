"""pytest tests/test_report_gate.py — the gate's document, and what the terminal and the baseline make of it."""

import copy
import io
import json

import jsonschema
import pytest
import report_examples as examples
from rich.console import Console

from parity.errors import BadInput
from parity.gate.results import SCHEMA
from parity.report import baseline, document, gate_table, view


def shown(content, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    gate_table.show(content, console)
    return console.file.getvalue()


@pytest.mark.parametrize("name", examples.ALL)
def test_documents_follow_the_schema(name):
    jsonschema.validate(examples.document(name), document.schema(SCHEMA))


def test_schema_describes_every_field_and_admits_no_other():
    schema = document.schema(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(schema)
    objects = []

    def walk(node):
        if isinstance(node, dict):
            if "properties" in node:
                objects.append(node)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(schema)
    assert len(objects) == 13
    for node in objects:
        assert node["additionalProperties"] is False
        assert set(node["required"]) == set(node["properties"])
        assert all("description" in value for value in node["properties"].values())


@pytest.mark.parametrize(
    "break_it",
    [
        lambda d: d.pop("cells"),
        lambda d: d.update(surplus=1),
        lambda d: d["cells"][0].update(verdict="fine"),
        lambda d: d["cells"][0].update(ratio=None),
        lambda d: d["cells"][0].pop("because"),
        lambda d: d["candidate"].update(line="12"),
        lambda d: d.update(verdict="good"),
    ],
)
def test_schema_refuses(break_it):
    content = examples.document("diverging")
    break_it(content)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, document.schema(SCHEMA))


def test_document_is_written_whole_whatever_a_candidate_says(tmp_path):
    target = tmp_path / "report.json"
    document.write_text(document.text(examples.hostile()), str(target))
    assert json.loads(target.read_text(encoding="utf-8"))["candidate"]["name"] == examples.HOSTILE
    assert document.read(str(target))["schema"] == SCHEMA


def test_states_tell_the_first_from_what_follows():
    content = examples.document("diverging")
    cells = view.cells_by_place(content)

    def name(*place):
        return view.state(content, cells.get(place)).name

    assert name("attention.sink", "oneshot") == "first"
    assert name("attention.sink", "cached") == "diverges"
    assert name("hc.post", "oneshot") == "explained"
    assert name("model.flash", "oneshot") == "follows"
    assert name("compressor.overlap", "chunks") == "crashed"
    assert name("embedding", "batch") == "gap"
    assert name("indexer.scores", "oneshot") == "absent"
    symbols = [state.symbol for state in view.STATES.values()]
    assert len(set(symbols)) == len(symbols)


def test_tolerance_is_told_in_numbers():
    (rms, largest) = view.tolerances(view.cells_by_place(examples.document("diverging"))["attention.sink", "oneshot"])
    assert rms.slack == pytest.approx(1.74, rel=1e-4)
    assert rms.over == pytest.approx(41.3, rel=1e-4)
    assert largest.slack == pytest.approx(1.74, rel=1e-4)
    floor = examples.document("parity")["cells"][0] | {"limit_rms": 5e-6, "floor_rms": 5e-6, "limit_max": 9e-4}
    assert [tolerance.slack for tolerance in view.tolerances(floor)] == [None, None]
    assert "The limit is the floor" in " ".join(view.explanation(floor))
    assert view.explanation(examples.document("crashed")["cells"][0]) == []


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_says_what_matters_first_and_the_verdict_last(width):
    text = shown(examples.document("diverging"), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    order = ["mlx_lm/models/deepseek_v4.py: diverges", "behaves exactly like", "attention.window", "The RMS error is"]
    places = [text.index(part) for part in (*order, "not judged: batch", "again: parity gate", "time: ")]
    assert places == sorted(places)
    assert "reproduces 8 of 18 red cells" in text
    assert "y[t, i] = sum_j comb[t, j, i] * streams" in text
    assert text.rstrip().splitlines()[-1].startswith("diverges (exit 1): ")
    row = next(line for line in lines if "attention.sink " in line and "│" in line)
    assert row.count("✗ 41") == 3
    assert row.count("✖ 41") == 1


def test_terminal_of_a_candidate_that_could_not_be_judged():
    text = shown(examples.document("environment"))
    assert "environment (exit 3): the candidate needs mlx_vlm and cv2" in text
    assert "│" not in text


def test_terminal_shows_hostile_text_as_text():
    text = shown(examples.document("hostile"))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]" in text
    assert len(text) < 12_000


def test_baseline_tells_what_moved():
    old, now = examples.document("parity"), examples.document("diverging")
    baseline.apply(now, old)
    jsonschema.validate(now, document.schema(SCHEMA))
    cells = view.cells_by_place(now)
    assert cells["attention.sink", "oneshot"]["drift"] == pytest.approx(41.3 / 0.4, rel=1e-4)
    assert cells["embedding", "oneshot"]["drift"] == 1.0
    assert cells["indexer.scores", "decode"]["drift"] == "inf"
    assert cells["embedding", "batch"]["drift"] is None
    notes = "\n".join(now["notes"])
    assert "parity in the baseline, diverges now: attention.sink (oneshot, cached, decode, chunks), " in notes
    assert "parity in the baseline, crashed now: compressor.overlap (chunks)" in notes
    assert "in the baseline, not in this run: indexer.scores (oneshot)" in notes
    text = shown(now)
    assert "drift" in text
    assert "×103" in text
    assert "drift" not in shown(old)


def test_baseline_of_the_same_run_moves_nothing():
    now = examples.document("parity")
    baseline.apply(now, copy.deepcopy(now))
    assert {cell["drift"] for cell in now["cells"]} == {1.0}
    assert now["notes"] == []


def test_a_baseline_from_before_names_were_tried_serves():
    old = examples.document("parity")
    del old["loading"]
    baseline.check(old)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(old, document.schema(SCHEMA))


def test_baseline_of_another_run_is_named():
    old, now = examples.document("parity"), examples.document("parity")
    old |= {"profile": "full", "seed": 7}
    baseline.apply(now, old)
    assert now["notes"] == [
        "the baseline has another profile (full), so drift compares unlike runs",
        "the baseline has another seed (7), so drift compares unlike runs",
    ]


@pytest.mark.parametrize(
    "old", [None, [], 3, {}, {"schema": "dsv4-parity/report/1"}, {"schema": SCHEMA}, {"schema": SCHEMA, "cells": 3}]
)
def test_foreign_baseline_is_refused_in_one_sentence(old):
    now = examples.document("parity")
    with pytest.raises(BadInput, match=r"^the baseline .*\.$") as caught:
        baseline.apply(now, old)
    assert "\n" not in str(caught.value)
    assert now == examples.document("parity")


def test_unreadable_baseline_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("bad.json", "deep.json", "binary.json", "missing.json"):
        with pytest.raises(BadInput, match="give a report that --json wrote"):
            document.read(str(tmp_path / name))
