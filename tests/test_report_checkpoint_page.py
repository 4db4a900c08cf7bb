"""pytest tests/test_report_checkpoint_page.py — the page of a checkpoint's run, parsed again."""

import re

import checkpoint_examples as examples
import jsonschema
import pytest
from test_report_html import Page

from parity.report import checkpoint_page, document
from parity.streamed.results import SCHEMA


def shown(name):
    return Page(checkpoint_page.page(examples.document(name)))


@pytest.mark.parametrize("name", examples.ALL)
def test_page_stands_alone(name):
    jsonschema.validate(examples.document(name), document.schema(SCHEMA))
    page = shown(name)
    for tag, found in page.elements:
        assert not {"src", "srcset", "data", "action", "style", "href"} & set(found), tag
        assert not [one for one in found if one.startswith("on")], tag
    assert not re.search(r"url\(|@import", page.code["style"])
    assert not page.having("script")
    (policy,) = (found["content"] for found in page.having("meta") if "http-equiv" in found)
    assert policy.startswith("default-src 'none'; ")
    assert "script-src" not in policy


def test_the_picture_has_a_place_for_every_layer():
    picture = checkpoint_page.picture(examples.document("flash"))
    alone, own, _ = picture["series"]
    assert [one["name"] for one in picture["names"]][:2] == ["embedding", "layer 0"]
    assert len(alone["points"]) == len(own["points"]) == 45
    heights = [y for _, y in own["points"]]
    assert heights == sorted(heights, reverse=True)  # errors grow, and up is more
    assert all(0 < y < picture["bottom"] for _, y in alone["points"])
    assert not [one for one in picture["names"] if one["red"]]
    page = shown("flash")
    assert "2000.0 s, 4.6 GiB of memory at most" in page.text
    assert len(page.having("polyline")) == 2
    assert len(page.having("circle")) == 45 + 1  # and one in the legend


def test_a_conversion_tells_what_is_wrong_and_its_decibels():
    page, found = shown("conversion"), examples.document("conversion")
    assert "honest rounding, on its own path so far" in page.text
    assert page.text.count(found["stages"][4]["wrong"][0]) >= 3
    assert "layer 3 ✗" in page.text
    assert "ffn.experts.*.w1 4 bits in groups of 64 256 3.1 20.8 20.8 41.00 layer 3" in page.text


def test_a_run_that_did_not_start_has_its_sentence_only():
    page = shown("stopped")
    assert "There is no folder nowhere." in page.text
    assert not page.having("table")
    assert not page.having("svg")


def test_hostile_text_is_text():
    source = checkpoint_page.page(examples.document("hostile"))
    assert "<script>alert('x')</script>" in Page(source).text
    assert "<script" not in source
    assert "\x1b" not in source
    assert "\u202e" not in source
