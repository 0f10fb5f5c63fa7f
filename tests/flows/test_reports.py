"""`--html`: one page with everything in it, that says in words what it shows in colour."""

from __future__ import annotations

import builtins
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from dsctl.checkpoint.scales import ScaleCounts, as_float32
from dsctl.look.source import describe
from dsctl.show.pages.capacity import fits
from dsctl.show.pages.cards import Card
from dsctl.show.pages.inspection import experts
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.reports import Page, made

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


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small").symlink_to(tiny(tmp_path_factory, "v3.1"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    assert "These numbers of ranks split heads or quantization blocks." in page
    assert "as stored: cannot be split" in page and "TP 3*" in page
    assert "publishes 131,072 tokens" in page and "163,840 (max_position_embeddings)" in page


def test_an_inspection_lists_every_kind_of_tensor(small: Path) -> None:
    page = made("inspect", "v3.2")
    assert "model.layers.{0-61}.self_attn.indexer.wq_b.weight_scale_inv" in page.text
    assert "689.5 GB" in page.text and "routed experts" in page.text


def test_every_role_has_a_bar_however_small(small: Path) -> None:
    text = made("inspect", "v3.2").text
    roles = {group.family.group for group in describe("v3.2").groups}
    bars = Path("page.html").read_text().partition('<ul class="bars">')[2].partition("</ul>")[0]
    assert set(re.findall(r"<b>([^<]*)</b>", bars)) == roles and "norm" in roles
    assert bars.count('<i class="bar"') == len(roles) and "< 0.01 %" in text


def test_layers_stand_in_order_from_the_embedding_to_the_head(small: Path) -> None:
    made("inspect", "v3.2")
    upright = Path("page.html").read_text().partition('<div class="columns">')[2].partition("</div>")[0]
    names = re.findall(r'<span title="([^:"]*):', upright)
    assert names == ["embedding", *(f"layer {n}" for n in range(61)), "MTP layer 61", "last norm and head"]
    made("inspect", "v4-flash-vision-exp")
    upright = Path("page.html").read_text().partition('<div class="columns">')[2].partition("</div>")[0]
    names = re.findall(r'<span title="([^:"]*):', upright)
    assert names[:3] == ["vision", "embedding", "layer 0"]
    assert names[-4:] == ["drafter stage 0", "drafter stage 1", "drafter stage 2", "last norm and head"]


def test_layers_of_one_size_are_one_row(small: Path) -> None:
    page = made("inspect", "v3.2").text
    assert "layers 0-2" in page and "layers 3-60" in page


def test_experts_are_drawn_only_where_they_differ(small: Path) -> None:
    assert "The 256 routed experts have the same size" in made("inspect", "v3.2").text
    assert "Bytes by routed expert" not in made("inspect", "v3.2").text
    whole = describe("v3.2").groups
    place, banks = next((n, group) for n, group in enumerate(whole) if group.family.experts)
    third = tuple(param.name for param in banks.family.params() if param.expert == 3)
    part = replace(banks, some=third, count=len(third))
    assert len(set(experts(whole).values())) == 1
    assert len(set(experts([*whole[:place], part, *whole[place + 1 :]]).values())) == 2


def test_a_comparison_shows_where_the_error_is(small: Path) -> None:
    dsctl("convert", "small", "other", "--to", "int4-group", "--quiet")
    page = made("compare", "small", "other")
    assert "layer 0" in page.text and "same" in page.text and "Largest differences" in page.text
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
    assert "as stored: fits" in text and "4 x MI300X" in text and "8 x H200" in text


def test_lines_of_memories_are_named_at_the_line(small: Path) -> None:
    made("plan", "v3.2", "--gpu", "h200", "--gpu", "mi300x")
    rules = re.findall(
        r'<i style="left: ([\d.]+)%"></i><span style="margin-left: ([\d.]+)%">([^<]*)<', Path("page.html").read_text()
    )
    assert all(line == name for line, name, _ in rules)
    assert [words.partition(": ")[2] for _, _, words in rules[:2]] == ["H200 SXM", "MI300X"]


def test_verdicts_are_cards_of_their_own(small: Path) -> None:
    """Of facts with verdicts, from the best: fits, tight, no, cannot be split."""
    held = {"world": 8, "tokens": 1000}
    accelerators = [
        {"name": "big", "formats": {"bf16": {"verdict": "tight", **held}}},
        {"name": "bigger", "formats": {"bf16": {"verdict": "fits", **held}}},
        {"name": "small", "formats": {"bf16": {"verdict": "no", **held}}},
    ]
    assert fits("bf16", accelerators) == Card(
        "bf16: fits", "8 x bigger", "1,000 tokens of cache. Tight: 8 x big. No: small"
    )
    assert fits("bf16", accelerators[:1]) == Card("bf16: tight", "8 x big", "1,000 tokens of cache. ", "changed")
    assert fits("bf16", accelerators[2:]).label == "bf16: no"
    uneven = {"name": "odd", "formats": {"bf16": {"verdict": "cannot be split", **held}}}
    assert fits("bf16", [uneven]).label == "bf16: cannot be split"


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
