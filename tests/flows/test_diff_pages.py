"""The page of a diff: what it says first, what it draws, and what it shows on demand."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from dsctl.look.diff import Diff
from dsctl.look.source import describe
from dsctl.show.drawing.architecture import stages
from dsctl.show.drawing.charts import curves, levels, ticks
from dsctl.show.drawing.diagram import diagrams
from tests.support.reports import made


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_diff_says_what_was_added_how_big_and_what_it_costs(here: Path) -> None:
    text = made("diff", "v3", "v3.2").text
    for said in (
        "865.5 M values",
        "310 parameters",
        "894.2 MB",
        "0.13 % of the bytes before",
        "a lightning indexer",
        "saves: attention arithmetic while decoding at 131,072 tokens",
        "13.3x less",
        "costs: cache per token",
        "+11.5 %",
        "Lightning indexer",
        "top 2,048",
        "→",
        "added",
    ):
        assert said in text
    assert "removed" not in text.partition("Config")[0]


def test_what_is_coloured_is_also_said(here: Path) -> None:
    made("diff", "v3", "v3.2")
    text = Path("page.html").read_text()
    coloured = re.findall(r'<g class="\w+ (added|removed|changed)">(.*?)</g>', text, re.DOTALL)
    assert len(coloured) >= 5
    signs = {"added": "+ ", "removed": "\N{MINUS SIGN} ", "changed": ""}
    assert all(re.search(f'class="mark"[^>]*>{re.escape(signs[kind])}', inner) for kind, inner in coloured)


def test_how_parameters_are_stored_is_shown_on_demand(here: Path) -> None:
    made("diff", "v3", "v3.2")
    before, _, after = Path("page.html").read_text().partition('<details class="stored">')
    assert "FP8 → FP8 ue8m0" in after.partition("</details>")[0]
    # Before, a card alone says that it differs.
    assert before.count("FP8 → FP8 ue8m0") == 1 and "BF16" not in "".join(re.findall(r"<text.*?</text>", before))


def test_a_diff_begins_with_what_it_means_and_draws_the_architecture_before_costs(here: Path) -> None:
    text = made("diff", "v3", "v3.2").text
    order = ["DeepSeek-V3.2 adds a lightning indexer", "Sparse attention:", "13.3x less", "The two architectures",
             "Cost of a token", "Sides", "Show the differences in storage"]  # fmt: skip
    places = [text.index(said) for said in order]
    places[2] = text.index("saves: attention arithmetic")
    assert places == sorted(places)


def test_cards_and_charts_begin_with_the_largest_change(here: Path) -> None:
    made("diff", "v3", "v3.2")
    text = Path("page.html").read_text()
    cards = re.findall(r"<strong>([^<]*)</strong>", text.partition('<ul class="cards">')[2].partition("</ul>")[0])
    assert cards[1:] == [
        "13.3x less",
        "9.5x less",
        "7.7x less",
        "+11.5 %",
        "+2.3 %",
        "+0.13 %",
        "22 kinds of parameters",
    ]
    charts = re.findall(r"<figcaption><strong>([^<]*)</strong>", text)
    assert charts == [
        "Attention arithmetic of one new token", "All arithmetic of one new token",
        "Cache read by one new token", "Cache held",
    ]  # fmt: skip


def test_a_diff_without_differences_is_a_sentence(here: Path) -> None:
    page = made("diff", "v3", "v3")
    main = page.text.partition("DeepSeek-V3 (B)")[2].partition("Made by")[0]
    assert Diff(describe("v3"), describe("v3")).headline in main
    assert "Compared: config.json, names, shapes, dtypes." in main
    assert not {tag for tag, _, _ in page.attributes} & {"table", "svg", "figure", "section", "details", "nav"}


def test_an_architecture_that_is_the_same_is_drawn_once_and_on_demand(here: Path) -> None:
    made("diff", "v3", "v3.1")
    text = Path("page.html").read_text()
    assert "The architecture is the same on both sides" in text and 'class="sides"' not in text
    shown = re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL)
    assert "<svg" in text and "<svg" not in shown


def test_axes_are_linear_begin_at_zero_and_say_so(here: Path) -> None:
    text = made("diff", "v3", "v3.2").text
    assert text.count("Both axes are linear.") == 4
    for longest in (8192, 163_840, 131_072, 1 << 20):
        places = ticks(longest)
        steps = {after - before for before, after in pairwise(places)}
        assert places[0] == 0 and len(steps) == 1 and 4 <= len(places) <= 9
        assert longest - places[-1] < steps.pop()
    for highest in (1.0, 1.2e12, 2.6e11, 9.9e9, 4_999_999.0):
        marks = levels(highest)
        assert marks[0] == 0 and 4 <= len(marks) <= 7 and marks[-1] <= highest < marks[-1] + marks[1]


def test_values_of_charts_can_be_read(here: Path) -> None:
    made("diff", "v3", "v3.2")
    titles = re.findall(r"<title>(.*?)</title>", Path("page.html").read_text())
    assert any("2.8 T" in title for title in titles) and any("199.8 G" in title for title in titles)


@pytest.mark.parametrize(("a", "b"), [("v3", "v3.2"), ("v2", "glm-5.2"), ("v2-lite", "kimi-k2"), ("glm-5.2", "v2")])
def test_every_parameter_is_drawn(a: str, b: str, here: Path) -> None:
    sheets = diagrams(Diff(describe(a), describe(b)))
    for sheet, name in zip(sheets, (a, b), strict=True):
        drawn = "\n".join(box.hint for box in sheet.boxes)
        assert all(group.family.template in drawn for group in describe(name).groups)


def test_what_one_side_alone_has_is_not_called_changed(here: Path) -> None:
    found = {stage.title: stage for _, stage in stages(Diff(describe("v2"), describe("glm-5.2"))) if stage}
    prediction = found["Multi-token prediction"]
    assert prediction.kind == "added" and {piece.kind for piece in prediction.pieces} == {"added"}
    experts = {piece.name: piece for piece in found["Mixture-of-experts layers"].pieces if piece.role == "attention"}
    assert experts["q_a_proj"].words == ("1,536 x 5,120 → 2,048 x 6,144",)


def test_both_sides_stand_side_by_side(here: Path) -> None:
    a, b = diagrams(Diff(describe("v2"), describe("v3.2")))
    assert a.cuts == b.cuts and a.height == b.height
    tops = [
        {(part.title, box.hint.split()[0]): box.y for part in sheet.slices for box in part.boxes if box.hint}
        for sheet in (a, b)
    ]
    both = tops[0].keys() & tops[1].keys()
    assert len(both) > 10 and all(tops[0][name] == tops[1][name] for name in both)


def test_curves_that_coincide_are_said_and_not_drawn(here: Path) -> None:
    text = made("diff", "v3", "r1").text
    assert "Cost of a token" not in text and text.count("as before") == 6
    both = curves("Cache held", [1024, 2048], {"a": [1, 2], "b": [1, 2]}, str, "tokens", 1)
    assert both.drawing is None and both.summary == "The same on both sides: 2 at 2,048 tokens." and len(both.rows) == 2


def test_no_paragraph_is_said_twice(here: Path) -> None:
    made("diff", "v3", "v3.2")
    said = re.findall(r"<(?:p|li)[^>]*>(.*?)</(?:p|li)>", Path("page.html").read_text(), re.DOTALL)
    long = [text for text in said if len(text) > 60]
    assert len(long) == len(set(long)) > 3
