"""`--html`: one page with everything in it, that says in words what it shows in colour."""

from __future__ import annotations

import builtins
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from dsctl.checkpoint.scales import ScaleCounts, as_float32
from dsctl.look.diff import Diff
from dsctl.look.source import describe
from dsctl.show.drawing.architecture import stages
from dsctl.show.drawing.diagram import diagrams
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl

LARGEST = 1_000_000
PAGES = (
    "diff v3 v3.2",
    "diff v2 glm-5.2",
    "diff v3 v3",
    "diff v3.2 v4-pro",
    "diff v4-flash v4-flash-0731",
    "diff small v3.2",
    "inspect v3.2",
    "inspect small",
    "inspect v4-flash-vision-exp",
    "plan v3.2 --to bf16",
    "plan v4-flash --tp 8",
    "plan v3.2 --tp 8 --ep 8",
    "compare small small",
)


class Page(HTMLParser):
    """Elements opened and closed in order; their attributes; all text."""

    VOID = frozenset({"meta", "input", "br", "link", "hr", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small").symlink_to(tiny(tmp_path_factory, "v3.1"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(*words: str) -> Page:
    dsctl(*words, "--html", "page.html", "--quiet")
    text = Path("page.html").read_text()
    assert len(text.encode()) < LARGEST
    page = Page(text)
    assert page.open == []
    return page


@pytest.mark.parametrize("line", PAGES)
def test_a_page_is_whole_and_fetches_nothing(line: str, small: Path) -> None:
    page = made(*line.split())
    fetched = [(tag, name, value) for tag, name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert [one for one in fetched if not (one[2] or "").startswith("#")] == []
    text = Path("page.html").read_text()
    assert not re.search(r"@import|url\(|<link|<iframe", text)
    policy = next(
        value for tag, name, value in page.attributes if tag == "meta" and (value or "").startswith("default")
    )
    assert policy is not None and policy.startswith("default-src 'none'")


def test_a_diff_says_what_was_added_how_big_and_what_it_costs(small: Path) -> None:
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


@pytest.mark.parametrize("words", [("diff", "v3-0324", "r1"), ("inspect", "v3-0324"), ("plan", "v3-0324")])
def test_a_page_says_where_it_comes_from_and_what_was_derived(words: tuple[str, ...], small: Path) -> None:
    page = made(*words).text
    said = (
        "dsctl's built-in description of DeepSeek-V3-0324 (config and storage derived from another release, not read)"
    )
    assert said in page
    if words[0] == "diff":
        assert "Config of DeepSeek-V3-0324: derived, not read." in page and "Not compared: values of weights" in page


def test_a_page_of_sizes_that_cannot_be_cut_says_so(small: Path) -> None:
    assert call("plan", "v3.2", "--tp", "3", "--html", "page.html", "--quiet").returncode == 30
    page = Page(Path("page.html").read_text()).text
    assert "these numbers of ranks need cuts that cannot be made" in page and "TP 3*" in page
    assert "publishes 131,072 tokens" in page and "163,840 (max_position_embeddings)" in page


def test_what_is_coloured_is_also_said(small: Path) -> None:
    made("diff", "v3", "v3.2")
    text = Path("page.html").read_text()
    coloured = re.findall(r'<g class="\w+ (added|removed|changed|stored)">(.*?)</g>', text, re.DOTALL)
    assert len(coloured) > 20
    signs = {"added": "+ ", "removed": "\N{MINUS SIGN} ", "changed": "", "stored": "~ "}
    assert all(re.search(f'class="mark"[^>]*>{re.escape(signs[kind])}', inner) for kind, inner in coloured)


def test_values_of_charts_can_be_read(small: Path) -> None:
    made("diff", "v3", "v3.2")
    titles = re.findall(r"<title>(.*?)</title>", Path("page.html").read_text())
    assert any("2.8 T" in title for title in titles) and any("199.8 G" in title for title in titles)


def test_an_inspection_lists_every_kind_of_tensor(small: Path) -> None:
    page = made("inspect", "v3.2")
    assert "model.layers.{0-61}.self_attn.indexer.wq_b.weight_scale_inv" in page.text
    assert "689.5 GB" in page.text and "routed experts" in page.text


def test_a_comparison_shows_where_the_error_is(small: Path) -> None:
    dsctl("convert", "small", "other", "--to", "int4-group", "--quiet")
    page = made("compare", "small", "other")
    assert "layer 0" in page.text and "same" in page.text and "Furthest apart" in page.text
    heat = re.findall(r'<td class="heat(\d)">([^<]*)</td>', Path("page.html").read_text())
    assert all((text in ("", "same")) == (level == "0") for level, text in heat)
    assert any(10 < float(text) < 30 and level in "34" for level, text in heat if level != "0")


def test_hostile_names_stay_text(small: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("hostile") / "<script>alert(1)</script>"
    folder.parent.mkdir(exist_ok=True)
    source = tiny(tmp_path_factory, "v3", layers=2, experts=2)
    named = Path("named")
    named.mkdir()
    for path in source.iterdir():
        (named / path.name).write_bytes(path.read_bytes())
    file = named / "model-00001-of-000004.safetensors"
    tensors = load_file(file)
    tensors["</table><script>alert(1)</script>"] = next(iter(tensors.values())).clone()
    save_file(tensors, file)
    made("inspect", "named")
    text = Path("page.html").read_text()
    assert "&lt;script&gt;alert(1)" in text and "<script>alert" not in text


def test_the_terminal_says_the_same_beside_it(small: Path) -> None:
    assert dsctl("diff", "v3", "v3.2", "--html", "page.html") == dsctl("diff", "v3", "v3.2")


@pytest.mark.parametrize("verb", ["inspect small", "diff small v3.2", "compare small small", "plan small"])
def test_a_page_never_takes_the_place_of_anything_else(verb: str, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("notes.html").write_text("<p>mine</p>")
    weights = sorted(Path("small").iterdir())
    held = {path: path.read_bytes() for path in weights}
    monkeypatch.setattr("dsctl.stores.store_at", None)  # refused before anything is read
    for file in (weights[0], "small/new.html", "notes.html", "small", "", "-", "nowhere/page.html", "/dev/null"):
        done = call(*verb.split(), "--html", file, "--quiet")
        assert done.returncode == 2 and "--html" in done.stderr and not done.stdout, file
    assert {path: path.read_bytes() for path in sorted(Path("small").iterdir())} == held
    assert Path("notes.html").read_text() == "<p>mine</p>" and not list(Path().glob(".dsctl-*"))


def test_a_page_is_written_again_over_itself_with_the_same_bytes(small: Path) -> None:
    Path("page.html").touch()
    pages = []
    for _ in range(2):
        made("diff", "v3", "v3.2")
        pages.append(Path("page.html").read_bytes())
    assert pages[0] == pages[1]
    assert Path("page.html").stat().st_mode & 0o444 == 0o444


def test_a_page_that_cannot_be_finished_leaves_the_old_one(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("diff", "v3", "v3.2")
    before = Path("page.html").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    done = call("diff", "v2", "v3", "--html", "page.html")
    assert done.returncode == 2 and "No space left" in done.stderr
    assert "Totals" in done.stdout
    assert Path("page.html").read_bytes() == before and not list(Path().glob(".dsctl-*"))


@pytest.mark.parametrize(("a", "b"), [("v3", "v3.2"), ("v2", "glm-5.2"), ("v2-lite", "kimi-k2"), ("glm-5.2", "v2")])
def test_every_parameter_is_drawn(a: str, b: str, small: Path) -> None:
    sheets = diagrams(Diff(describe(a), describe(b)))
    for sheet, name in zip(sheets, (a, b), strict=True):
        drawn = "\n".join(box.hint for box in sheet.boxes)
        assert all(group.family.template in drawn for group in describe(name).groups)


def test_what_one_side_alone_has_is_not_called_changed(small: Path) -> None:
    found = {stage.title: stage for _, stage in stages(Diff(describe("v2"), describe("glm-5.2"))) if stage}
    prediction = found["Multi-token prediction"]
    assert prediction.kind == "added" and {piece.kind for piece in prediction.pieces} == {"added"}
    experts = {piece.name: piece for piece in found["Mixture-of-experts layers"].pieces if piece.role == "attention"}
    assert experts["q_a_proj"].words == ("1,536\xa0x\xa05,120 → 2,048\xa0x\xa06,144",)


def test_both_sides_stand_side_by_side(small: Path) -> None:
    a, b = diagrams(Diff(describe("v2"), describe("v3.2")))
    assert a.cuts == b.cuts and a.height == b.height
    tops = [
        {(part.title, box.hint.split()[0]): box.y for part in sheet.slices for box in part.boxes if box.hint}
        for sheet in (a, b)
    ]
    both = tops[0].keys() & tops[1].keys()
    assert len(both) > 10 and all(tops[0][name] == tops[1][name] for name in both)


def test_curves_that_coincide_are_said_and_not_drawn(small: Path) -> None:
    text = made("diff", "v3", "r1").text
    assert text.count("The same on both sides") == 3
    assert "pygal" not in Path("page.html").read_text().partition("<main>")[2]


def test_no_paragraph_is_said_twice(small: Path) -> None:
    made("diff", "v3", "v3.2")
    said = re.findall(r"<(?:p|li)[^>]*>(.*?)</(?:p|li)>", Path("page.html").read_text(), re.DOTALL)
    long = [text for text in said if len(text) > 60]
    assert len(long) == len(set(long)) > 3


def test_scales_of_both_sides_are_shown(small: Path) -> None:
    dsctl("convert", "small", "other", "--to", "int4-group", "--quiet")
    facts = json.loads(dsctl("compare", "small", "other", "--json"))
    for side, source in (("a", "small"), ("b", "other")):
        counted = facts["scales"][side]
        seen = json.loads(dsctl("inspect", source, "--tensors", "--json"))["tensor_list"]
        scales = [one for one in seen if one["name"].endswith(("_scale_inv", "_scale"))]
        assert counted["scales"] == sum(math.prod(one["shape"]) for one in scales)
        assert sum(bin_["scales"] for bin_ in counted["histogram"]) == counted["scales"]
    # Those of V3.1's o_proj are not rounded: 16 in each of four layers.
    assert facts["scales"]["a"]["powers_of_two"] == facts["scales"]["a"]["scales"] - 64 == 1112
    assert facts["scales"]["b"]["powers_of_two"] < facts["scales"]["b"]["scales"]
    assert "94% of them powers of two" in made("compare", "small", "other").text


def test_a_plan_says_what_it_fits_on(small: Path) -> None:
    text = made("plan", "v3.2", "--gpu", "h200", "--gpu", "mi300x").text
    assert "as stored fits on" in text and "4 x MI300X" in text and "8 x H200" in text


def test_a_file_that_cannot_be_written_is_told(small: Path) -> None:
    done = call("diff", "v3", "v3.2", "--html", "nowhere/page.html", "--quiet")
    assert done.returncode == 2 and "nowhere/page.html" in done.stderr


def test_without_the_extra_the_hint_names_it(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def lacking(name: str, *rest: Any) -> Any:
        if name == "pygal":
            raise ModuleNotFoundError("No module named 'pygal'", name="pygal")
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacking)
    done = call("diff", "v3", "v3.2", "--html", "page.html")
    assert done.returncode == 2 and "dsctl[report]" in done.stderr and not Path("page.html").exists()


def test_scales_are_counted_by_the_power_of_two_below_them() -> None:
    stored = np.array([0.25, 0.3, 1.0, 0.0, np.inf], np.float16)
    counts = ScaleCounts.of(as_float32(stored.tobytes(), "F16"))
    assert (counts.number, counts.powers, counts.bins) == (5, 2, {-2: 2, 0: 1})
