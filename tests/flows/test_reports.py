"""`--html`: one page with everything in it, that says in words what it shows in colour."""

from __future__ import annotations

import builtins
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.checkpoints import tiny
from tests.command import call, dsctl

LARGEST = 1_000_000
PAGES = (
    "diff v3 v3.2",
    "diff v2 glm-5.2",
    "diff v3 v3",
    "diff small v3.2",
    "inspect v3.2",
    "inspect small",
    "plan v3.2 --to bf16",
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
        "13.9 times less",
        "Indexer",
        "top 2,048",
        "→",
        "added",
    ):
        assert said in text
    assert "removed" not in text.partition("Config")[0]


def test_what_is_coloured_is_also_said(small: Path) -> None:
    made("diff", "v3", "v3.2")
    text = Path("page.html").read_text()
    coloured = re.findall(r'<li class="(added|removed|changed)">(.*?)</li>', text, re.DOTALL)
    assert len(coloured) > 20
    assert all('class="tag' in inner for _, inner in coloured)


def test_values_of_charts_can_be_read(small: Path) -> None:
    made("diff", "v3", "v3.2")
    titles = re.findall(r"<title>(.*?)</title>", Path("page.html").read_text())
    assert any("2.8 T" in title for title in titles) and any("199.8 B" in title for title in titles)


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
