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
    assert first[-1].startswith("in part: " if left else "complete: ")
    assert not left or first[-1].partition("left out: ")[2].endswith(left), first[-1]
    assert ("is there already" if left else "is complete already") in again


@pytest.mark.parametrize("words", [["--to", "nvfp4"], ["--recipe", "experts.toml"]])
def test_a_format_that_a_loader_gets_wrong_is_warned_of(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rules = '[[rule]]\nrole = "routed experts"\nformat = "nvfp4"\n[[rule]]\nmatch = "*"\nformat = "bf16"\n'
    (tmp_path / "experts.toml").write_text(rules)
    wrong = "warning: transformers 5.24 loads routed experts in nvfp4 without a word"
    assert wrong in dsctl("convert", source, "out", *words, "--dry-run")
    assert wrong in dsctl("convert", source, "out", *words)
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
