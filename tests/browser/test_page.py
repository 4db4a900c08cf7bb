"""pytest -m browser tests/browser — the gate's page in an installed Chromium, through Playwright.

PARITY_REQUIRE_BROWSER=1 makes a missing browser a failure; PARITY_SCREENSHOTS=DIR keeps pictures to look at.
"""

import os
import shutil
from pathlib import Path

import checkpoint_examples as checkpoints
import pytest
import report_examples as examples

from parity.report import checkpoint_page, html

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome")
DESKTOP, PHONE = (1100, 900), (360, 740)
FIRST = 'a[aria-label^="attention.sink under oneshot"]'


def missing(reason):
    if os.environ.get("PARITY_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser():
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        missing(f"no browser: none of {', '.join(NAMES)} is installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    with sync_playwright() as driver:
        # Chromium's sandbox refuses to start as root, which is who a container runs as.
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = driver.chromium.launch(executable_path=binary, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def show(browser, tmp_path):
    """show(name, size, scheme) opens an example's page; afterwards nothing was complained about or asked for."""
    complaints, requests, contexts = [], [], []

    def opened(name, size=DESKTOP, scheme="light", script=True, fragment=""):
        target = tmp_path / f"{name}.html"
        kind, _, one = name.rpartition(" ")
        source = checkpoint_page.page(checkpoints.document(one)) if kind else html.page(examples.document(name))
        target.write_text(source, encoding="utf-8")
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=script
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(target.as_uri() + fragment)
        assert requests.pop() == target.as_uri()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests == []


def overflow(page):
    """How far the page is wider than its window, and the names of what sticks out of it."""
    return page.evaluate("""() => {
      const wide = document.documentElement.clientWidth;
      const out = [...document.querySelectorAll("body *")].filter((element) =>
        !element.closest(".scroll") && element.checkVisibility() && element.getBoundingClientRect().right > wide + 1);
      return [document.documentElement.scrollWidth - wide, out.map((element) => element.outerHTML.slice(0, 80))];
    }""")


def picture(page, name):
    if "PARITY_SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["PARITY_SCREENSHOTS"], f"{name}.png"), full_page="dialog" not in name)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", [*examples.ALL, *(f"checkpoint {name}" for name in checkpoints.ALL)])
def test_nothing_sticks_out(show, name, size, scheme):
    page = show(name, size, scheme)
    assert overflow(page) == [0, []]
    picture(page, f"{name}-{size[0]}-{scheme}")


@pytest.mark.parametrize("name", ["diverging", "hostile"])
def test_open_drill_downs_fit_a_phone(show, name):
    page = show(name, PHONE, "dark")
    for cell in (FIRST, 'a.cell[href="#cell-4-3"]', "a.s-explained", "a.s-follows"):
        page.locator(cell).first.click()
        assert page.locator("dialog[open]").count() == 1
        assert overflow(page) == [0, []]
        picture(page, f"dialog-{name}-{PHONE[0]}-{cell[2:5]}")
        page.keyboard.press("Escape")


def test_red_cell_shows_its_drill_down(show):
    page = show("diverging")
    page.click(FIRST)
    text = page.locator("dialog[open]").inner_text()
    assert "attention.sink under oneshot" in text
    assert "41 times its limit" in text
    assert "2 (factor) × 1.74 (slack" in text
    picture(page, f"dialog-diverging-{DESKTOP[0]}")
    page.click("dialog[open] .close")
    assert page.locator("dialog[open]").count() == 0


def test_click_beside_the_drill_down_closes_it(show):
    page = show("diverging")
    page.click(FIRST)
    page.mouse.click(5, 5)
    assert page.locator("dialog[open]").count() == 0


def test_first_deviation_leads_to_its_cell(show):
    page = show("diverging")
    page.click("text=Its numbers and its limit")
    assert "attention.sink" in page.locator("dialog[open] h2").inner_text()


def test_keyboard_opens_closes_and_moves(show):
    page = show("diverging")
    page.locator("#matrix").focus()
    page.keyboard.press("Tab")
    assert focused(page).startswith("embedding under oneshot")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert focused(page).startswith("experts.shared under cached")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert "experts.shared under cached" in page.locator("dialog[open] h2").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert focused(page).startswith("experts.shared under cached")


def focused(page):
    return page.evaluate("document.activeElement.getAttribute('aria-label') ?? ''")


def test_link_to_a_cell_opens_it(show):
    page = show("diverging", fragment="#cell-6-1")
    assert "hc.post under cached" in page.locator("dialog[open] h2").inner_text()


def test_drill_down_without_scripts(show):
    page = show("diverging", script=False)
    page.click(FIRST)
    # Scripts of the test itself do not run either; the accessible tree tells what is shown.
    assert "attention.sink under oneshot" in page.locator("dialog:visible h2").inner_text()


def test_the_checks_see_what_they_look_for(show):
    page = show("parity", PHONE)
    page.evaluate("""() => {
      const wide = document.createElement("p");
      wide.append("wide");
      wide.setAttribute("class", "chip s-parity");
      document.querySelector("main").append(wide);
      document.styleSheets[0].insertRule("main > .chip { display: block; width: 500px; color: var(--card); }");
    }""")
    beyond, elements = overflow(page)
    assert beyond > 100
    assert len(elements) == 1
    assert any("wide" in element for _, element in page.evaluate(CONTRAST))


def test_dark_is_dark_and_light_is_light(show):
    for scheme, dark in (("light", False), ("dark", True)):
        page = show("diverging", scheme=scheme)
        red, green, blue = page.evaluate(
            "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)"
        )
        assert (red + green + blue < 150) is dark


CONTRAST = """() => {
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("svg, .s-follows")) continue;
    const [a, b] = [parse(getComputedStyle(element).color), behind(element)].map(luminance);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) poor.push([contrast.toFixed(2), element.outerHTML.slice(0, 90)]);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(show, scheme):
    assert show("diverging", scheme=scheme).evaluate(CONTRAST) == []


def test_hostile_text_does_nothing(show):
    page = show("hostile")
    assert "<script>alert('x')</script>" in page.locator("h1").inner_text()
