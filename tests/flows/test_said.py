"""What is said of a result: in part where it is, which loader gets it wrong, and nothing that was not done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsctl.core.errors import LATER, SourceError
from dsctl.stores.local import LocalFolder
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.schemas import faults

SMALL = {
    "layers": 2, "experts": 4, "hidden": 256, "heads": 4, "vocab": 256, "intermediate": 256, "moe_intermediate": 256,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3", **SMALL)


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["convert", "--bf16"], ""),
        (["convert", "--bf16", "--only", "model.norm.weight"], "72 parameters (not in --only)"),
        (["convert", "--bf16", "--no-mtp"], "32 parameters (MTP layer)"),
        (["shard", "--tp", 2], ""),
        (["shard", "--tp", 2, "--rank", 1], "1 of 2 ranks"),
    ],
)
def test_a_partial_result_is_not_called_complete(source: Path, tmp_path: Path, words: list[Any], left: str) -> None:
    line = (words[0], source, tmp_path / "out", *words[1:])
    first, again = dsctl(*line).splitlines(), dsctl(*line)
    (said,) = [text for text in first if text.startswith(("in part: ", "complete: "))]
    assert said.startswith("in part: " if left else "complete: ")
    assert not left or said.partition("left out: ")[2].endswith(left), said
    assert ("is already written in part" if left else "is already complete") in again


UNLOADABLE = "partial: loaders cannot open it; `dsctl slice` makes one they can"


@pytest.mark.parametrize(
    ("words", "remark"),
    [
        (["convert", "--bf16", "--only", "model.norm.weight"], UNLOADABLE),
        (["convert", "--bf16", "--skip", "model.norm.weight"], UNLOADABLE),
        (["shard", "--tp", 2, "--rank", 1], "partial: 1 of 2 ranks; loaders need all of them"),
        (["convert", "--bf16", "--only", "*"], None),
        (["convert", "--bf16", "--no-mtp"], None),
        (["slice", "--layers", 0], None),
        (["shard", "--tp", 2], None),
    ],
)
def test_a_result_that_loaders_cannot_open_says_so_at_the_end(
    source: Path, tmp_path: Path, words: list[Any], remark: str | None
) -> None:
    line = (words[0], source, tmp_path / "out", *words[1:])
    planned, made = dsctl(*line, "--dry-run"), dsctl(*line)
    assert ("partial: " in planned) == ("partial: " in made) == (remark is not None)
    if remark:
        assert planned.rstrip().endswith(remark) and made.rstrip().endswith(remark)
        assert remark in json.loads(dsctl(*line, "--dry-run", "--json"))["notes"]
        assert remark in json.loads((tmp_path / "out" / "dsctl.json").read_text())["notes"]


def test_a_release_of_which_a_part_is_planned_says_so_too(tmp_path: Path) -> None:
    line = ("convert", "v3", tmp_path / "out", "--bf16", "--dry-run", "--only", "model.norm.weight")
    assert UNLOADABLE in dsctl(*line) and UNLOADABLE in json.loads(dsctl(*line, "--json"))["notes"]
    line = ("shard", "v3", tmp_path / "out", "--tp", 2, "--rank", 0, "--dry-run")
    assert "partial: 1 of 2 ranks" in dsctl(*line)
    told = json.loads(dsctl(*line, "--json"))
    assert faults("shard-plan", told) == [] and any("1 of 2 ranks" in note for note in told["notes"])


@pytest.mark.parametrize(
    ("words", "already"),
    [
        (["convert", "--fp8"], "already fp8-block: this only copies"),
        (["convert", "--fp8", "--no-mtp"], "already fp8-block: this only copies"),
        (["convert", "--to", "published"], "already stored as published: this only copies"),
        (["convert", "--bf16"], None),
        (["convert", "--to", "fp8-block-ct"], None),
        (["shard", "--tp", 2, "--fp8"], None),
        (["slice", "--layers", 0], None),
    ],
)
def test_a_conversion_that_only_copies_says_so_before_it_begins(
    source: Path, tmp_path: Path, words: list[Any], already: str | None
) -> None:
    line = (words[0], source, tmp_path / "out", *words[1:])
    for more in (["--dry-run"], ["--dry-run", "--json"], []):
        done = call(*line, *more)
        assert done.returncode == 0 and ("only copies" in done.stderr) == (already is not None)
        assert "only copies" not in done.stdout or more[1:]
        assert already is None or f"warning: {already}\n" in done.stderr
    notes = json.loads(dsctl(*line, "--json"))["notes"]
    assert [note for note in notes if "only copies" in note] == ([f"warning: {already}"] if already else [])


def test_a_release_that_has_the_format_says_so_too(tmp_path: Path) -> None:
    line = ("convert", "v3", tmp_path / "out", "--dry-run")
    assert "warning: already fp8-block: this only copies\n" in call(*line, "--fp8").stderr
    assert "only copies" not in call(*line, "--bf16").stderr


def test_a_recipe_is_found_by_its_old_name_with_a_warning(source: Path, tmp_path: Path) -> None:
    """What was begun under the old name goes on under the new one."""
    warning = "warning: recipe w4a8-experts is now called int4-experts-fp8"
    old, new = ("convert", source, tmp_path / "out", "--recipe", "w4a8-experts"), "int4-experts-fp8"
    planned, made = call(*old, "--dry-run", "--json"), call(*old)
    assert planned.returncode == made.returncode == 0
    assert warning in planned.stderr and warning in made.stderr
    assert any(note.startswith(warning) for note in json.loads(planned.stdout)["notes"])
    again = call(*old[:-1], new)
    assert "is already complete" in again.stdout and warning not in again.stderr
    assert warning in call("plan", "v3", "--recipe", "w4a8-experts").stderr
    assert "w4a8" not in dsctl("formats") and new in dsctl("formats")


@pytest.mark.parametrize("words", [["--to", "nvfp4"], ["--recipe", "experts.toml"]])
def test_a_format_that_a_loader_gets_wrong_is_warned_of(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rules = '[[rule]]\nrole = "routed experts"\nformat = "nvfp4"\n[[rule]]\nmatch = "*"\nformat = "bf16"\n'
    (tmp_path / "experts.toml").write_text(rules)
    wrong = "warning: transformers 5.24 loads routed experts in nvfp4 without an error"
    assert wrong in call("convert", source, "out", *words, "--dry-run").stderr
    assert wrong in call("convert", source, "out", *words).stderr
    assert any(note.startswith(wrong) for note in json.loads(Path("out/dsctl.json").read_text())["notes"])
    assert "nvfp4" not in " ".join(json.loads(dsctl("convert", source, "other", "--to", "mxfp4", "--json"))["notes"])


def test_the_list_of_formats_warns_too() -> None:
    told = {one["name"]: one["warning"] for one in json.loads(dsctl("formats", "--json"))["formats"]}
    assert [name for name, warning in told.items() if warning] == ["nvfp4"]
    assert "computes wrong answers" in " ".join(dsctl("formats").split())


def test_only_what_was_begun_is_said_to_be_resumed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that stops answering: looking keeps nothing, a conversion that has begun does."""

    def gone(*_: object) -> None:
        raise SourceError("hub: no answer", hint=LATER)

    with monkeypatch.context() as patched:
        patched.setattr(LocalFolder, "head", gone)
        looked = call("inspect", source), call("convert", source, tmp_path / "out", "--bf16")
    monkeypatch.setattr("dsctl.cli.carrying.carry_out", gone)
    begun = call("convert", source, tmp_path / "out", "--bf16")
    assert [done.stderr.partition("hint: ")[2].strip() for done in (*looked, begun)] == [
        "try again later", "try again later", "try again later: the same command resumes where it stopped",
    ]  # fmt: skip
