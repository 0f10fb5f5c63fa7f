"""Pages in a real browser: nothing is fetched, nothing is complained of, all can be read. `python3 dev.py browser`.

They need playwright, and chromium: the system's, or where the variable CHROMIUM says.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import tiny
from tests.support.command import dsctl

pytestmark = pytest.mark.browser
LINES = (
    "diff v3 v3.2",
    "diff v2 glm-5.2",
    "diff v3 r1",
    "diff v3 v3",
    "diff v3 v3.1",
    "diff v3.2 v4-pro",
    "diff v4-flash-0731 v4-flash-vision-exp",
    "diff v4-flash v4.1-flash",
    "diff small v3.2",
    "inspect v3.2",
    "inspect small",
    "inspect v4-flash",
    "inspect v4.1-flash",
    "plan v3.2 --to bf16",
    "plan v4-flash",
    "plan v4.1-flash",
    "plan v3.2 --tp 8 --ep 8",
    "compare small other",
    "compare small small",
)
SEARCHED = {
    "indexer f8_e4m3": ("indexer",),
    "indexer fp8": ("indexer",),
    "model.layers.5.self_attn.q_a_proj.weight": ("q_a_proj.weight", "q_a_proj.weight_scale_inv"),
    "model.layers.5.self_attn.q_a_proj.weight bf16": (),
    "experts.17": ("experts.{0-255}",),
    "experts.256": (),
    "layers.61.enorm": ("enorm",),
    "layers.60.enorm": (),
    "layers.4.mlp.experts.255.up_proj": ("up_proj",),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every line's page, made once."""
    folder = tmp_path_factory.mktemp("pages")
    source = tiny(tmp_path_factory, "v3.1")
    dsctl("convert", source, folder / "other", "--to", "int4-group", "--quiet")
    places = {"small": str(source), "other": str(folder / "other")}
    found = {}
    for number, line in enumerate(LINES):
        found[line] = folder / f"{number}.html"
        dsctl(*(places.get(word, word) for word in line.split()), "--html", found[line], "--quiet")
    return found


def opened(browser: Any, file: Path, width: int = 1200, scheme: str = "light") -> Any:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(file.as_uri())
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200, 2000])
@pytest.mark.parametrize("line", LINES)
def test_a_page_is_quiet_and_fits(line: str, width: int, scheme: Any, browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[line].as_uri())
    assert said == [] and asked == [pages[line].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


# Cells whose text stands in more than two lines of less than six letters each.
BROKEN = """() => [...document.querySelectorAll("td, th")].filter(cell => {
  const range = document.createRange(); range.selectNodeContents(cell);
  const lines = new Set([...range.getClientRects()].map(one => Math.round(one.top))).size;
  return lines > 2 && cell.textContent.length / lines < 6;
}).map(cell => cell.textContent)"""


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("line", LINES)
def test_no_cell_is_broken_into_letters(line: str, width: int, browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages[line], width)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate(BROKEN) == []
    page.close()


# Text whose colour stands out too little from what is behind it (WCAG 2, 1.4.3: 4.5 to 1).
FAINT = """() => {
  const parse = said => {
    const [r, g, b, alpha = 1] = said.match(/[\\d.]+/g).map(Number);
    return {rgb: [r, g, b], alpha};
  };
  const over = (top, below) => top.rgb.map((c, i) => c * top.alpha + below[i] * (1 - top.alpha));
  const light = rgb => rgb.map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const paper = element => {
    const stack = [];
    for (let one = element; one; one = one.parentElement) {
      const style = getComputedStyle(one);
      const filled = one.matches("g.box, g.pill, g.cache, g.node, g.frame, g.rect");
      const rect = filled && [...one.children].find(child => child.matches("rect"));
      if (rect && getComputedStyle(rect).fill !== "none") stack.push(parse(getComputedStyle(rect).fill));
      else if (style.backgroundColor) stack.push(parse(style.backgroundColor));
    }
    return stack.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("title, desc, style, script, defs")) continue;
    const style = getComputedStyle(element), back = paper(element);
    const ink = over(parse(element.matches("svg text") ? style.fill : style.color), back);
    const [high, low] = [light(ink), light(back)].sort((x, y) => y - x);
    const ratio = (high + .05) / (low + .05);
    if (ratio < 4.5) faint.push(`${element.textContent}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("line", LINES)
def test_text_stands_out(line: str, scheme: str, browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages[line], 400, scheme)
    assert page.evaluate(FAINT) == []
    page.close()


# Text that is smaller than 11 pixels where it can be seen.
SMALL = """() => [...document.querySelectorAll("body *")].filter(one => one.checkVisibility()
  && [...one.childNodes].some(child => child.nodeType === Node.TEXT_NODE && child.data.trim())
  && parseFloat(getComputedStyle(one).fontSize) * (one.matches("svg text") ? one.getScreenCTM().a : 1) < 10.99
).map(one => one.textContent)"""


@pytest.mark.parametrize("width", [400, 1280, 2000])
@pytest.mark.parametrize("line", LINES)
def test_text_is_at_least_11_pixels_high(line: str, width: int, browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages[line], width)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate(SMALL) == []
    page.close()


@pytest.mark.parametrize("line", LINES)
def test_a_page_can_be_heard(line: str, browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages[line])
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))
    assert page.locator("h1").count() == page.locator("main").count() == 1
    assert page.evaluate("[...document.querySelectorAll('th')].filter(one => !one.textContent.trim()).length") == 0
    assert (
        page.evaluate("[...document.querySelectorAll('a')].filter(one => !document.querySelector(one.hash)).length")
        == 0
    )
    # Bars that run across are text themselves.
    for figure in page.locator("figure").all():
        assert figure.locator("table, .bars").count() >= 1
    for figure in page.locator("figure").all():
        assert not figure.locator(".upright").count() or figure.locator(".upright[role=img][aria-label]").count() == 1
    for drawing in page.locator("svg").all():
        assert drawing.get_attribute("role") in ("img", "group") and drawing.get_attribute("aria-label")
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(one => one.tabIndex === 0)")
    page.close()


DIFFS = tuple(line for line in LINES if line.startswith("diff"))


@pytest.mark.parametrize("line", ["diff v3 v3.2", "diff v2 glm-5.2", "diff v3.2 v4-pro", "diff small v3.2"])
def test_the_changed_side_is_in_view_on_a_phone(line: str, browser: Any, pages: dict[str, Path]) -> None:
    """Side B comes first and is as wide as the page; neither side needs to be scrolled across, nor has the empty space
    that lines it up with the other. On a desk A is left."""
    page = opened(browser, pages[line], 400)
    assert page.locator(".stacked h3").first.inner_text().startswith("B: ")
    sides = page.evaluate(BOXES)
    assert len(sides) == 2 and sides[0]["top"] + sides[0]["height"] <= sides[1]["top"]
    heights = [side["height"] for side in sides]
    for side in sides:
        assert side["left"] >= 0 and side["right"] <= 400 and side["right"] - side["left"] > 340
        assert side["inner"] <= 400
    page.set_viewport_size({"width": 1280, "height": 900})
    a, b = page.evaluate(BOXES)
    assert a["right"] <= b["left"] and a["top"] == b["top"]
    assert a["height"] == b["height"] and heights[0] != heights[1]
    page.close()


BOXES = """() => [...document.querySelectorAll(".sides > div, .stacked > div")]
  .filter(side => side.checkVisibility()).map(side => {
  const {top, height, left, right} = side.getBoundingClientRect();
  const inner = Math.max(...[...side.querySelectorAll("text, rect")].map(one => one.getBoundingClientRect().right));
  return {top, height, left, right, inner};
})"""

# Text of a drawing that leaves its box or the drawing, or lies on other text.
SPILLED = """() => {
  const found = [];
  for (const drawing of document.querySelectorAll(".diagram")) {
    const sheet = drawing.getBoundingClientRect();
    const texts = [...drawing.querySelectorAll("text")].map(text => [text, text.getBoundingClientRect()]);
    for (const [text, box] of texts) {
      const rect = text.parentElement.matches("g") && text.parentElement.querySelector("rect").getBoundingClientRect();
      if (rect && (box.left < rect.left || box.right > rect.right)) found.push(`out of its box: ${text.textContent}`);
      if (box.left < sheet.left || box.right > sheet.right + 2) found.push(`out of the drawing: ${text.textContent}`);
    }
    texts.forEach(([one, a], n) => texts.slice(n + 1).forEach(([other, b]) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 2 && down > 5) found.push(`${one.textContent} on ${other.textContent}`);
    }));
  }
  return found;
}"""


@pytest.mark.parametrize("line", [*DIFFS, "inspect v3.2", "inspect v4-flash"])
def test_text_of_a_drawing_stays_in_its_box(line: str, browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages[line], 1280)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate(SPILLED) == []
    page.close()


def test_what_it_means_comes_before_all_else_and_the_drawing_before_the_costs(
    browser: Any, pages: dict[str, Path]
) -> None:
    page = opened(browser, pages["diff v3 v3.2"])
    tops = page.evaluate("""() => ["h1", ".lead", "#means", ".cards", "#drawn", "#costs", "#tables", "#stored"]
      .map(one => document.querySelector(one).getBoundingClientRect().top)""")
    assert tops == sorted(tops) and page.locator("#means").is_visible()
    assert page.locator("#means").bounding_box()["y"] < 400
    page.close()


def test_storage_is_collapsed_and_opens_without_script(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(pages["diff v3 v3.2"].as_uri())
    stored = page.locator("details.stored")
    assert not stored.locator("table").is_visible()
    stored.locator("summary").click()
    assert stored.locator("table").is_visible() and "FP8 → FP8 ue8m0" in stored.inner_text()
    page.context.close()


def test_no_difference_is_one_sentence(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["diff v3 v3"], 400)
    assert page.locator("main p").count() == 2
    assert page.locator("main svg, main table, main figure, main details, nav").count() == 0
    assert page.evaluate("document.documentElement.scrollHeight") <= 900
    page.close()


@pytest.mark.parametrize("width", [400, 1280, 2000])
@pytest.mark.parametrize("line", ["inspect v3.2", "inspect small", "inspect v4-flash"])
def test_every_role_can_be_seen(line: str, width: int, browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages[line], width)
    roles = page.locator("figure").first.locator(".bars li")
    assert roles.count() > 8
    for role in roles.all():
        bar = role.locator(".bar").bounding_box()
        assert bar["width"] >= 3 and bar["height"] > 10
        name, value = role.locator("b"), role.locator(".value")
        assert name.is_visible() and value.is_visible() and "%" in value.inner_text()
    page.close()


@pytest.mark.parametrize("width", [400, 1280, 2000])
@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("plan")])
def test_bars_fill_their_axis_and_lines_are_named_on_it(
    line: str, width: int, browser: Any, pages: dict[str, Path]
) -> None:
    page = opened(browser, pages[line], width)
    for chart in page.locator(".ruled").all():
        frame = chart.bounding_box()
        tracks = [track.bounding_box() for track in chart.locator(".track").all()]
        assert len({(track["x"], track["width"]) for track in tracks}) == 1
        filled = [
            sum(part.bounding_box()["width"] for part in track.locator(".bar").all())
            for track in chart.locator(".track").all()
        ]
        assert 0.5 * tracks[0]["width"] < max(filled) <= tracks[0]["width"] + 3
        for rule in chart.locator(".rules li").all():
            at, name = rule.locator("i").bounding_box(), rule.locator("span").bounding_box()
            assert abs(at["x"] - name["x"]) < 2 and abs(at["y"] - name["y"]) < 8
            assert name["x"] + name["width"] <= frame["x"] + frame["width"] + 1
            assert tracks[0]["x"] <= at["x"] <= tracks[0]["x"] + tracks[0]["width"] + 1
    page.close()


@pytest.mark.parametrize("line", ["diff v3 v3.2", "inspect v3.2", "plan v3.2 --to bf16", "compare small other"])
def test_what_the_mouse_is_over_has_a_tooltip(line: str, browser: Any, pages: dict[str, Path]) -> None:
    """Browsers show the title of the element below the mouse, or of the nearest around it."""
    page = opened(browser, pages[line])
    titles = page.evaluate("""() => [...document.querySelectorAll(".plot .dot, .plot .rect.reactive, .bar")]
      .filter(one => one.getBoundingClientRect().height > 3).map(one => {
      one.scrollIntoView({block: "center"});
      const box = one.getBoundingClientRect();
      let over = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
      const within = one => one.title || [...one.children].find(child => child.matches("title"))?.textContent;
      while (over && !within(over)) over = over.parentElement;
      return over ? within(over) : "";
    })""")
    assert len(titles) > 3 and all(any(letter.isdecimal() for letter in title) for title in titles)
    page.close()


@pytest.mark.parametrize("query", SEARCHED)
def test_the_search_leaves_what_matches(query: str, browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["inspect v3.2"])
    every = page.locator("#tensors tbody tr:visible").count()
    page.get_by_label("Search").fill(query)
    shown = [row.inner_text() for row in page.locator("#tensors tbody tr").all() if row.is_visible()]
    assert page.locator("#found").inner_text() == f"{len(shown)} of {every} rows"
    wanted = SEARCHED[query]
    assert bool(shown) == bool(wanted)
    assert all(any(name in text for name in wanted) for text in shown)
    assert all(any(name in text for text in shown) for name in wanted)
    page.get_by_label("Search").fill("")
    assert page.locator("#tensors tbody tr:visible").count() == every > 40
    page.close()


def test_on_paper_it_is_light_and_without_what_only_screens_have(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["inspect v3.2"], scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator("#search").is_visible() and not page.get_by_text("Search", exact=True).is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).printColorAdjust") == "exact"
    page.close()
