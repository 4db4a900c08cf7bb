"""pytest tests/test_report_html.py — the page, parsed again; tests/browser looks at it in a browser."""

import base64
import hashlib
import math
import re
from html.parser import HTMLParser

import pytest
import report_examples as examples

from parity.report import html

VOID = {"meta", "br", "wbr", "link", "img", "input"}


class Page(HTMLParser):
    """Elements as (tag, attributes), their nesting checked; the text outside style and script."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.elements, self.stack, self.texts, self.code = [], [], [], {}
        self.feed(source)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] in ("style", "script"):
            self.code[self.stack[-1]] = self.code.get(self.stack[-1], "") + data
        else:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def having(self, tag, **attributes):
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]


@pytest.mark.parametrize("name", examples.ALL)
def test_page_stands_alone_and_every_link_leads_somewhere(name):
    page = Page(html.page(examples.document(name)))
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(set(ids)) == len(ids)
    for tag, found in page.elements:
        assert not {"src", "srcset", "data", "action", "style"} & set(found), tag
        assert not [name for name in found if name.startswith("on")], tag
        if "href" in found:
            assert found["href"].removeprefix("#") in ids
        if "aria-labelledby" in found:
            assert found["aria-labelledby"] in ids
    assert not re.search(r"url\(|@import", page.code["style"])
    assert len(page.having("h1")) == 1
    assert len(page.having("script")) == len(page.having("style")) == 1


def test_policy_admits_this_style_and_this_script_only():
    page = Page(html.page(examples.document("hostile")))
    (policy,) = (found["content"] for found in page.having("meta") if "http-equiv" in found)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.code[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_verdict_and_diagnosis_stand_above_the_matrix():
    page = Page(html.page(examples.document("diverging")))
    order = [
        "diverges exit 1",
        "attention.sink deviates first",
        "behaves exactly like the reference",
        "y[t, i] = sum_j",
        "a public port of April 2026",
        "First deviation",
        "Mechanism by schedule",
        "Error by layer",
        "Not judged",
        "See it again",
    ]
    places = [page.text.index(part) for part in order]
    assert places == sorted(places)


def test_every_cell_has_its_drill_down():
    content = examples.document("diverging")
    page = Page(html.page(content))
    links = [found for found in page.having("a") if found.get("class", "").startswith("cell ")]
    assert len(links) == len(page.having("dialog")) == len(content["cells"])
    labels = [link["aria-label"] for link in links]
    assert "attention.sink under oneshot: the first deviation: look here, error 41 times its limit" in labels
    assert [link["class"] for link in links].count("cell s-first is-first") == 1
    assert sum("s-follows" in link["class"] for link in links) == 6
    assert sum("s-explained" in link["class"] for link in links) == 8
    assert "The limit is 2 (factor) × 1.74 (slack for a sample of 29 tokens) × 3.1e-07 (null" in page.text
    assert "RMS error: limit = factor 2 × slack 1.74 × null 3.1e-07 = 1.1e-06" in page.text


def test_a_crash_that_comes_first_is_marked():
    content = examples.document("crashed")
    content["first_deviation"] = {"mechanism": "embedding", "schedule": "oneshot", "sentence": "segfaulted"}
    page = Page(html.page(content))
    assert page.having("a", **{"class": "cell s-crashed is-first", "href": "#cell-0-0"})


def test_bars_are_logarithmic_and_red_above_the_limit():
    content = examples.document("diverging")
    shown = html.layers(content)
    assert [place for place, _ in shown["ticks"]] == [0.0, 25.0, 50.0, 75.0, 100.0]
    bars = [(bar["bar"], bar["over"]) for bar in shown["bars"] if bar["item"]["tap"].endswith("attn")]
    assert bars[0] == (25.0, False)
    assert bars[1] == (round(25 * (math.log10(8e-6) + 7), 2), True)
    page = html.page(content)
    assert page.count("no module returned it") == 2
    assert page.count('title="above its limit"') == 2


def test_environment_is_told_in_words():
    content = examples.document("parity")
    content["environment"] = {"libraries": {"mlx": "0.32.4", "torch": "2.13"}, "blas": ["a", "b"], "tf32": False}
    text = Page(html.page(content)).text
    assert "libraries mlx 0.32.4, torch 2.13 blas a, b tf32 False" in text


def test_no_layers_no_section():
    assert "Error by layer" not in html.page(examples.document("parity"))
    untapped = examples.document("diverging")
    for item in untapped["layers"]:
        item["module"] = None
    assert "Error by layer" not in html.page(untapped)


def test_infinite_and_zero_errors_have_a_place():
    content = examples.document("diverging")
    content["layers"][0] |= {"error": "inf"}
    content["layers"][1] |= {"error": 0, "limit": 0}
    bars = html.layers(content)["bars"]
    assert (bars[0]["bar"], bars[0]["over"]) == (100.0, True)
    assert (bars[1]["bar"], bars[1]["over"]) == (0.0, False)


def test_hostile_text_is_text():
    source = html.page(examples.document("hostile"))
    page = Page(source)
    assert "<script>alert('x')</script>" in page.text
    assert source.count("<script") == 1
    assert "\x1b" not in source
    assert "\u202e" not in source
    source.encode("utf-8")
    assert page.text.count("characters more)") == 1
