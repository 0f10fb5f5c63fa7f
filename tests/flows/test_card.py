"""`dsctl card`: a stub for a README, which says what is known and guesses nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.flows.planted import Folder
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl

SMALL = {
    "layers": 2, "experts": 4, "hidden": 256, "heads": 4, "vocab": 256, "intermediate": 256, "moe_intermediate": 256,
}  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What huggingface/hub-docs docs/hub/model-cards.md allows.
RELATIONS = {"quantized", "finetune", "adapter", "merge"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3.2", **SMALL)


@pytest.fixture(scope="module")
def snapshot(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in a hub's cache."""
    place = tmp_path_factory.mktemp("hub") / "models--acme--small" / "snapshots" / COMMIT
    return Path(shutil.copytree(source, place))


def metadata(*arguments: object) -> dict[str, object]:
    """The front matter as the hub's library reads it."""
    found: dict[str, object] = ModelCard(dsctl("card", *arguments)).data.to_dict()
    assert found.get("base_model_relation", "quantized") in RELATIONS
    return found


def test_the_source_s_repository_is_the_base(snapshot: Path, tmp_path: Path) -> None:
    dsctl("convert", snapshot, tmp_path / "int4", "--to", "int4-group")
    assert metadata(tmp_path / "int4") == {"base_model": "acme/small", "base_model_relation": "quantized"}
    text = dsctl("card", tmp_path / "int4")
    assert f"commit `{COMMIT}`" in text and "| format | int4-group |" in text and "0 unexplained." in text


@pytest.mark.parametrize("line", [("--bf16",), ("--layout", "transformers")])
def test_decoding_and_renaming_are_no_relation(snapshot: Path, tmp_path: Path, line: tuple[str, ...]) -> None:
    dsctl("convert", snapshot, tmp_path / "out", *line)
    assert metadata(tmp_path / "out") == {"base_model": "acme/small"}


def test_a_base_is_not_guessed_and_may_be_named(source: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "int8", "--to", "int8-channel")
    assert "base_model" not in dsctl("card", tmp_path / "int8") and "Made by dsctl" in dsctl("card", tmp_path / "int8")
    named = ("--base-model", "acme/other")
    assert metadata(tmp_path / "int8", *named) == {"base_model": "acme/other", "base_model_relation": "quantized"}
    assert "Base model: [acme/other]" in dsctl("card", tmp_path / "int8", *named)


def test_a_relation_to_what_was_converted_before_is_not_known(source: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "bf16", "--bf16")
    dsctl("convert", tmp_path / "bf16", tmp_path / "fp8", "--fp8")
    assert metadata(tmp_path / "fp8", "--base-model", "acme/small") == {"base_model": "acme/small"}


def test_a_folder_of_an_earlier_version_has_a_card(source: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "out", "--to", "int8-channel")
    (tmp_path / "out" / "dsctl.intoto.json").unlink()
    text = dsctl("card", tmp_path / "out", "--base-model", "acme/small")
    assert "base_model: acme/small" in text and "relation" not in text and "intoto" not in text


def test_it_writes_nothing(source: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "out", "--bf16")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    dsctl("card", tmp_path / "out")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out" / "README.md").read_bytes() == (source / "README.md").read_bytes()


def test_what_no_card_can_be_made_of_is_refused(source: Path, snapshot: Path, tmp_path: Path) -> None:
    assert call("card", source).returncode == 10
    dsctl("convert", snapshot, tmp_path / "out", "--bf16")
    for base in ("small", "a/b/c", "../x", "a/b\nlicense: mit", "a/-", "é/a"):
        assert call("card", tmp_path / "out", "--base-model", base).returncode == 2
    other = call("card", tmp_path / "out", "--base-model", "acme/other")
    assert other.returncode == 2 and "dsctl.intoto.json says acme/small" in other.stderr


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("request", 7),
        ("request", {"to": 7, "layout": "hf"}),
        ("request", {}),
        ("audit", {"moved": "x"}),
        ("audit", None),
        ("files", {"a": {}}),
        ("files", 7),
        ("dsctl", {}),
    ],
)
def test_a_hostile_audit_is_refused(source: Path, tmp_path: Path, place: str, value: object) -> None:
    dsctl("convert", source, tmp_path / "out", "--bf16")
    Folder(tmp_path / "out").json("dsctl.json", lambda audit: audit.update({place: value}))
    done = call("card", tmp_path / "out")
    assert done.returncode == 20 and done.stderr.startswith("error: dsctl.json") and not done.stdout


def test_markup_and_control_characters_stay_text(source: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "out", "--bf16")
    Folder(tmp_path / "out").json("dsctl.json", lambda audit: audit.update(dsctl="1<b>\n---\n# x"))
    text = dsctl("card", tmp_path / "out")
    assert "1\\<b\\>" in text and "\n# x" not in text
    assert json.loads(dsctl("card", tmp_path / "out", "--json"))["version"] == "1<b>\n---\n# x"
