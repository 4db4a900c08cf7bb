"""Which keys were seen, read from logits: the reference's own, those of known defects, and logits that say nothing.

Run: pytest tests/test_keys.py
"""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import report_examples as examples
import torch
from test_report_html import Page

from parity import cli
from parity.gate import keys
from parity.gate.defects import catalogue
from parity.gate.defects.patching import applied
from parity.gate.diagnosis import patched_logits
from parity.gate.filling import reference
from parity.gate.matrix import Matrix, ends_of, spread
from parity.gate.probes import registry
from parity.gate.results import SCHEMA, Cell, KeysSeen
from parity.judging import taps
from parity.report import document, html, markdown
from parity.report import keys as words
from parity.results import Verdict

KNOWN = catalogue()
CANDIDATES = Path(__file__).parent / "candidates"


def family(mechanism):
    return reference(registry()[mechanism], 0)


def given(mechanism, defect, schedule="oneshot"):
    """The first sequence's logits [S, V] of the reference with a defect."""
    return patched_logits(family(mechanism), schedule, [KNOWN[defect]], "float32")[0]


def visibility(mechanism, defect):
    """What the reference with a defect itself says that queries see, bool [S, K]."""
    with applied([KNOWN[defect]], "reference_torch"), torch.no_grad():
        model = family(mechanism).side("float64").model
        with taps.recording(model, {"seen": ("layers.0.attn", "visibility")}) as record:
            model(family(mechanism).ids[:1])
    return record["seen"][0][0]


@pytest.mark.parametrize("mechanism", keys.MECHANISMS)
def test_the_reference_saw_what_it_must(mechanism):
    found = family(mechanism)
    reader = keys.Reader.of(found)
    seen, told = reader.read(found.baseline[0].double())
    assert told.all()
    assert torch.equal(seen, reader.expected)
    # as the specification has it, sections 6.4 and 7
    window, ratio = 8, found.probe.config["compress_ratios"][0]
    for query in range(found.probe.tokens):
        tokens = [str(key) for key in range(max(query - window + 1, 0), query + 1)]
        rows = [f"row {row}" for row in range((query + 1) // ratio if ratio else 0)]
        assert [reader.labels[key] for key in seen[query].nonzero().flatten()] == tokens + rows
    assert keys.keys_seen(found, "oneshot", found.baseline[0]) is None


DEFECTS = [
    ("attention.window", "X044"),
    ("attention.window", "X045"),
    ("attention.window", "X046"),
    ("attention.window", "X047"),
    ("compressor.overlap", "D051-overlap-late"),
    ("compressor.plain", "D050-plain"),
    ("compressor.plain", "X065"),
]


@pytest.mark.parametrize(("mechanism", "defect"), DEFECTS)
def test_a_defect_is_seen_as_it_sees(mechanism, defect):
    reader = keys.Reader.of(family(mechanism))
    seen, told = reader.read(given(mechanism, defect).double())
    truth = visibility(mechanism, defect)
    assert told.all()
    assert not torch.equal(truth, reader.expected)
    rows = lambda mask: sorted(reader.kinds[key] for key in mask.nonzero().flatten())  # noqa: E731 # ids may repeat
    assert [rows(one) for one in seen] == [rows(one) for one in truth]
    if defect != "X047":  # where the next token has the id of an earlier one, that one is named
        assert torch.equal(seen, truth)


def test_a_ring_one_ahead_reads_the_oldest_key_for_the_newest():
    found = keys.keys_seen(family("attention.window"), "decode", given("attention.window", "X049", "decode"))
    ids = family("attention.window").ids[0]
    assert {*range(13, 29)} - {*words.queries(vars(found))} == {24}
    assert ids[24] == ids[16]  # so that nothing shows there
    assert (found.expected[13], found.seen[13]) == ([*range(6, 14)], [*range(5, 13)])
    assert found.unclear == [*range(5, 13)]  # slots that were not written are no keys
    assert all(found.seen[query] == [] for query in found.unclear)


def test_what_fits_no_choice_of_keys_is_no_picture():
    found = family("attention.window")
    noise = torch.randn(found.exact[0].shape, generator=torch.Generator().manual_seed(1))
    for logits in (noise * 1e30, torch.zeros_like(noise)):
        assert not keys.Reader.of(found).read(logits.double())[1].any()
        assert keys.keys_seen(found, "oneshot", logits) is None
    assert keys.keys_seen(found, "oneshot", given("attention.window", "X037")) is None  # wrong rows
    noise[4] = torch.nan
    mixed = torch.where((torch.arange(len(noise)) % 2 == 0)[:, None], noise, given("attention.window", "X045"))
    seen = keys.keys_seen(found, "oneshot", mixed)
    assert seen.unclear == [*range(0, 29, 2)]
    assert words.queries(vars(seen)) == [*range(7, 29, 2)]


def test_weights_that_are_no_whole_numbers_of_keys_are_unclear():
    reader = keys.Reader.of(family("compressor.overlap"))
    columns = [reader.columns(query) for query in range(len(reader.expected))]
    rows = torch.stack([reader.rows[[own[0] for own in line]] for line in columns])
    counts = torch.stack(
        [torch.tensor([reader.expected[q, own].sum() for own in line]) for q, line in enumerate(columns)]
    )
    for factor, told in ((1.0, True), (2.0, False), (1.5, False), (0.02, False)):  # twice is no other key
        weighed = counts.double()
        weighed[20, 0] *= factor
        with torch.no_grad():
            assert bool(reader.read(reader.logits(weighed, rows))[1][20]) is told, factor


def test_ends_of_calls_alone_are_read():
    found = family("attention.window")
    calls = found.probe.calls_of("chunks")
    ends = ends_of(found, calls)
    matrix = Matrix([Cell("attention.window", "chunks", Verdict.DIVERGES)])
    logits = given("attention.window", "X045")[None, ends]
    matrix.logits["attention.window", "chunks"] = spread(found, logits, calls)
    matrix.ends_only.add(("attention.window", "chunks"))
    (seen,) = keys.first_picture({"attention.window": found}, matrix)
    assert words.queries(vars(seen)) == [7, 16, 19, 28]
    assert seen.unclear == (~ends).nonzero().flatten().tolist()


def test_only_the_first_red_cell_is_read():
    found = {name: family(name) for name in ("attention.window", "compressor.overlap")}
    cells = [("attention.window", Verdict.PARITY), ("attention.queries", Verdict.DIVERGES)]
    cells += [("compressor.overlap", Verdict.DIVERGES)] * 2
    matrix = Matrix([Cell(name, schedule, verdict) for (name, verdict), schedule in zip(cells, "abcd", strict=True)])
    assert keys.first_picture(found, matrix) == []  # without logits
    matrix.logits["compressor.overlap", "d"] = given("compressor.overlap", "D051-overlap-late")[None]
    (seen,) = keys.first_picture(found, matrix)
    assert (seen.mechanism, seen.schedule) == ("compressor.overlap", "d")


# --- reports ---------------------------------------------------------------------------------------------------


def reported(*more):
    report = examples.diverging()
    names = [str(token) for token in range(40)] + ["row 0"]
    expected = [[*range(max(query - 1, 0), query + 1)] for query in range(40)]
    seen = copy.deepcopy(expected)
    seen[3], seen[5], seen[9] = [3, 4, 40], [], []
    for query, keys_ in more:
        seen[query] = keys_
    report.keys = [KeysSeen("attention.window", "oneshot", names, expected, seen, [9])]
    return json.loads(json.dumps(report.to_dict()))


SENTENCE = (
    "attention.window under oneshot: query 3 saw 2 keys that it must not see (token 4, row 0) and did not see 1 key "
    "that it should (token 2). 2 of 39 queries differ; 1 more could not be told."
)


def test_sentence_stands_in_every_view():
    content = reported()
    jsonschema.validate(content, document.schema(SCHEMA))
    assert words.sentences(content) == [SENTENCE]
    assert f"Which keys were seen: {markdown.text(SENTENCE)}" in markdown.summary(content)
    assert SENTENCE in Page(html.page(content)).text
    assert words.sentences(examples.document("diverging")) == []
    assert "Which keys were seen" not in html.page(examples.document("diverging"))


def test_page_draws_each_key_and_says_the_same_in_words():
    page = Page(html.page(reported()))
    assert page.having("svg", role="img", **{"aria-label": SENTENCE})
    kinds = [found["class"] for found in page.having("rect") if found.get("class") in ("right", "extra", "missing")]
    legend = ["right", "extra", "missing"]
    assert kinds == [*legend, "missing", "right", "extra", "extra", "missing", "missing"]
    assert "query 5 did not see 2 keys that it should (token 4, token 5)" in page.text
    assert "not drawn" not in page.text


def test_a_large_picture_is_cut_and_says_so():
    content = reported(*((query, [query]) for query in range(10, 40)))
    (picture,) = words.pictures(content)
    assert (len(picture["lines"]), picture["left_out"]) == (24, 8)
    assert "Queries that differ and are not drawn: 8." in Page(html.page(content)).text
    assert words.sentences(reported((3, [*range(4, 20)])))[0].count("token") == words.NAMED + 2


def test_a_port_whose_window_is_short_is_told_which_key_it_misses(tmp_path, capsys):
    target, page = tmp_path / "report.json", tmp_path / "page.html"
    port = str(CANDIDATES / "sees_one_less.py")
    code = cli.main(["gate", port, "--only", "attention.window", "--json", str(target), "--html", str(page)])
    report = json.loads(target.read_text())
    jsonschema.validate(report, document.schema(SCHEMA))
    assert (code, report["diagnosis"][0]["defects"]) == (1, ["X045"])
    (sentence,) = words.sentences(report)
    assert sentence == (
        "attention.window under oneshot: query 7 did not see 1 key that it should (token 0). 22 of 29 queries differ."
    )
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert sentence in Page(page.read_text()).text
