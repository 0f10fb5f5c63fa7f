"""`import dsctl`: the same as the command line, as calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dsctl
from dsctl.core.errors import UsageError
from dsctl.plan.request import Request
from tests.support.checkpoints import tiny
from tests.support.command import dsctl as command


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3.2", layers=2, experts=2)


def digests(folder: Path) -> dict[str, str]:
    return {name: file["sha256"] for name, file in json.loads((folder / "dsctl.json").read_text())["files"].items()}


def test_a_conversion_is_the_command_lines(small: Path, tmp_path: Path) -> None:
    command("convert", small, tmp_path / "theirs", "--bf16", "--no-mtp", "--shard-size", "8MB")
    events: list[object] = []
    conversion = dsctl.open(small).to("bf16", mtp=False, shard_size=8_000_000)
    assert not (tmp_path / "ours").exists() and conversion.plan.bytes_out > 0
    audit = conversion.run(tmp_path / "ours", report=events.append)
    assert digests(tmp_path / "ours") == digests(tmp_path / "theirs")
    assert audit == json.loads((tmp_path / "ours" / "dsctl.json").read_text())
    assert events
    assert conversion.run(tmp_path / "ours") == audit, "what is complete is not done again"


def test_a_recipe_is_the_command_lines(small: Path, tmp_path: Path) -> None:
    command("convert", small, tmp_path / "theirs", "--recipe", "int4-experts")
    dsctl.open(str(small)).to(recipe="int4-experts").run(tmp_path / "ours")
    assert digests(tmp_path / "ours") == digests(tmp_path / "theirs")


def test_looking_is_the_command_lines(small: Path) -> None:
    source = dsctl.open(small)
    assert {total.name for total in source.inspect().roles} >= {"attention", "indexer", "routed experts"}
    assert source.diff("v3.2").differs and not source.diff(source).differs
    assert source.compare(source).total.same
    assert not [finding for finding in source.verify().findings if finding.severity == "error"]
    assert source.verify(against=dsctl.open("v3")).findings


def test_a_release_is_described_offline() -> None:
    assert dsctl.open("v3").inspect().description.values == 684_489_845_504


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(dsctl.DsctlError, match="nowhere"):
        _ = dsctl.open("nowhere").checkpoint
    with pytest.raises(dsctl.DsctlError, match="fp3"):
        dsctl.open("v3").to("fp3")
    with pytest.raises(dsctl.DsctlError, match="both"):
        dsctl.open("v3").to("bf16", recipe="int8")


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = "torch numpy typer rich huggingface_hub"
    work = "import sys, dsctl; dsctl.open('v3').diff('v3.2').verdict"
    script = f"{work}; print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_notebooks_show_tables(small: Path) -> None:
    shown = dsctl.open("v3").diff("v3.2")._repr_html_()
    assert "indexer.wq_b.weight</td>" in shown and "684,489,845,504" in shown and "<h4>Removed" not in shown
    assert shown.count("<table>") == shown.count("</table>") == 3
    assert "routed experts" in dsctl.open(small).inspect()._repr_html_()


def test_names_in_notebooks_are_text(small: Path, tmp_path: Path) -> None:
    (tmp_path / "<b>").symlink_to(small)
    assert "&lt;b&gt;" in dsctl.open(tmp_path / "<b>").inspect()._repr_html_()


def test_a_string_is_one_glob(small: Path) -> None:
    """Taken letter by letter, "*" among them, it would select everything."""
    glob = "model.layers.0.*"
    source = dsctl.open(small)
    for words in ({"only": glob}, {"skip": glob}):
        (name,) = words
        one, listed = source.to("bf16", **words), source.to("bf16", **{name: [glob]})
        assert one.request == listed.request and getattr(one.request, name) == (glob,)
        assert one.plan.counts == listed.plan.counts != source.to("bf16").plan.counts
        compared = [one.name for one in source.compare(source, **words).compared]
        assert all(parameter.startswith("model.layers.0.") == (name == "only") for parameter in compared)
    assert Request(to="bf16", only="*").only == ("*",)


@pytest.mark.parametrize(
    "words", [{"ranks": "0-1"}, {"ranks": 1}, {"ranks": ["0"]}, {"only": 1}, {"skip": [1]}, {"only": None}]
)
def test_what_is_no_sequence_of_its_kind_is_refused(small: Path, words: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(words))):
        dsctl.open(small).to("bf16", tp=2, **words)


@pytest.mark.parametrize("name", ["layers", "experts", "ranks"])
def test_numbers_of_a_request_are_numbers(name: str) -> None:
    assert getattr(Request(to="bf16", **{name: range(2)}), name) == (0, 1)
    with pytest.raises(UsageError, match=name):
        Request(to="bf16", **{name: "01"})
