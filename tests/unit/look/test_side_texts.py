"""Tokenizer, special tokens, chat template and generation config of two folders: what differs in them, in fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsctl.look import side_texts
from dsctl.look.config_changes import ABSENT
from dsctl.look.side_texts import Texts, texts_of_folders, texts_of_releases
from dsctl.look.tokenizers import MOST_TOKENIZER
from dsctl.releases import Release, find, releases

TOKENIZER: dict[str, Any] = {
    "model": {"vocab": {"a": 0, "b": 1, "c": 2}, "merges": ["a b", "b c"]},
    "added_tokens": [{"id": 3, "content": "<think>", "special": False}, {"id": 4, "content": "<end>", "special": True}],
    "normalizer": None,
}
CONFIG: dict[str, Any] = {"model_max_length": 16, "chat_template": "{{ messages }}"}
GENERATION: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95}


def folder(place: Path, **files: Any) -> str:
    """A folder with the usual files; words of `files` replace them, None leaves one out."""
    usual = {"tokenizer": TOKENIZER, "tokenizer_config": CONFIG, "generation_config": GENERATION}
    place.mkdir()
    for name, held in (usual | files).items():
        if held is not None:
            (place / f"{name}.json").write_text(held if isinstance(held, str) else json.dumps(held))
    return str(place)


def changed(tmp_path: Path, **files: Any) -> Texts:
    return texts_of_folders(folder(tmp_path / "a"), folder(tmp_path / "b", **files), ())


def said(texts: Texts) -> list[tuple[Any, ...]]:
    return [tuple(None if value is ABSENT else value for value in change[:4]) for change in texts.changes]


def test_equal_folders_have_no_changes(tmp_path: Path) -> None:
    assert changed(tmp_path) == Texts()


def test_vocabularies_are_compared_by_tokens_and_numbers(tmp_path: Path) -> None:
    other = TOKENIZER | {"model": {"vocab": {"b": 0, "a": 1, "d": 2, "e": 5}, "merges": [["a", "b"], ["b", "c"]]}}
    assert said(changed(tmp_path, tokenizer=other)) == [
        ("tokenizer", "vocabulary", 3, 4),
        ("tokenizer", "tokens on one side", "1: c", "2: d, e"),
        ("tokenizer", "2 tokens renumbered", "a 0, b 1", "a 1, b 0"),
    ]


def test_special_tokens_are_added_removed_and_renumbered(tmp_path: Path) -> None:
    tokens = [{"id": 9, "content": "<think>"}, {"id": 4, "content": "<end>"}, {"id": 5, "content": "<new>"}]
    found = changed(tmp_path, tokenizer=TOKENIZER | {"added_tokens": tokens})
    assert said(found) == [
        ("special tokens", "<think>", 3, 9),
        ("special tokens", "<end> special", True, False),
        ("special tokens", "<new>", None, 5),
    ]
    assert [change.sign for change in found.changes] == ["changed", "changed", "added"]


def test_special_tokens_of_tokenizer_config_count_without_a_tokenizer(tmp_path: Path) -> None:
    decoder = {"3": {"content": "<think>", "special": True}, "x": {"content": "<odd>"}, "5": 7}
    a = folder(tmp_path / "a", tokenizer=None, tokenizer_config=CONFIG | {"added_tokens_decoder": decoder})
    b = folder(tmp_path / "b", tokenizer=None)
    assert said(texts_of_folders(a, b, ())) == [("special tokens", "<think>", 3, None)]


def test_steps_of_a_tokenizer_and_fields_of_json_files_are_named(tmp_path: Path) -> None:
    found = changed(
        tmp_path,
        tokenizer=TOKENIZER | {"normalizer": {"type": "NFC"}},
        tokenizer_config=CONFIG | {"model_max_length": 32, "long": "x" * 1000},
        generation_config={"temperature": 1.0, "do_sample": True},
    )
    values = {(kind, field): (before, after) for kind, field, before, after in said(found)}
    assert values["tokenizer", "normalizer"] == (None, {"type": "NFC"})
    assert values["tokenizer", "model_max_length"] == (16, 32)
    assert str(values["tokenizer", "long"][1]).startswith("1,002 characters, SHA-256 ")
    assert values["generation config", "temperature"] == (0.6, 1.0)
    assert values["generation config", "top_p"] == (0.95, None)
    assert values["generation config", "do_sample"] == (None, True)


@pytest.mark.parametrize(
    ("file", "text"),
    [("chat_template.jinja", "{{ messages }}\n"), ("chat_template.json", '{"chat_template": "{{ messages }}"}')],
)
def test_the_same_template_in_a_different_file_has_moved(tmp_path: Path, file: str, text: str) -> None:
    b = Path(folder(tmp_path / "b", tokenizer_config={"model_max_length": 16}))
    (b / file).write_text(text)
    (change,) = texts_of_folders(folder(tmp_path / "a"), str(b), ()).changes
    assert change == ("chat template", "default", "tokenizer_config.json", file, True) and change.sign == ""


def test_a_different_template_shows_by_place_and_digest(tmp_path: Path) -> None:
    b = Path(folder(tmp_path / "b", tokenizer_config={"model_max_length": 16}))
    (b / "chat_template.jinja").write_text("{{ other }}")
    (change,) = texts_of_folders(folder(tmp_path / "a"), str(b), ()).changes
    assert change.before.startswith("tokenizer_config.json: 14 characters, SHA-256 ")
    assert change.after.startswith("chat_template.jinja: 11 characters, SHA-256 ") and change.sign == "changed"


def test_templates_with_names_are_compared_one_by_one(tmp_path: Path) -> None:
    listed = [{"name": "default", "template": "{{ messages }}"}, {"name": "tools", "template": "t"}, {"name": 5}, 7]
    found = changed(tmp_path, tokenizer_config=CONFIG | {"chat_template": listed})
    assert [(change.what, change.before is ABSENT) for change in found.changes] == [("tools", True)]


DEEP = "[" * 200_000
HOSTILE = {
    "not JSON": "{",
    "deep": DEEP,
    "deep section": '{"model": {"vocab": {}}, "normalizer": ' + DEEP + "]" * 200_000 + "}",
    "a list": "[1]",
    "negative": '{"model": {"vocab": {"a": -1}}}',
    "huge number": '{"model": {"vocab": {"a": 1' + "0" * 5000 + "}}}",
    "half a pair": '{"model": {"vocab": {"\\ud800": 1}}}',
    "wrong types": '{"model": {"vocab": 5}, "added_tokens": {}}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("file", ["tokenizer", "tokenizer_config", "generation_config"])
def test_a_file_that_cannot_be_read_is_named_and_nothing_is_made_up(tmp_path: Path, file: str, text: str) -> None:
    found = changed(tmp_path, **{file: text})
    refused = [problem for problem in found.problems if f"/b/{file}.json was not compared: " in problem]
    # Valid JSON objects are no problem outside of tokenizer.json: their fields differ.
    assert refused or found.changes
    assert not refused or found.changes == ()
    assert all("\n" not in problem for problem in found.problems)


def test_bytes_that_are_not_text_and_huge_files_are_not_read(tmp_path: Path) -> None:
    b = Path(folder(tmp_path / "b"))
    (b / "chat_template.jinja").write_bytes(b"\xff\xfe")
    for name, size in (("tokenizer.json", MOST_TOKENIZER), ("generation_config.json", side_texts.MOST_JSON)):
        with (b / name).open("wb") as file:
            file.truncate(size + 1)
    found = texts_of_folders(folder(tmp_path / "a"), str(b), ())
    assert found.changes == () and len(found.problems) == 3
    assert any("chat_template.jinja was not compared: it is not text in UTF-8" in said for said in found.problems)
    assert sum("it has more than" in said for said in found.problems) == 2


def test_many_differences_are_cut_and_counted(tmp_path: Path) -> None:
    tokens = [{"id": n, "content": f"<{n}>"} for n in range(side_texts.MOST + 5)]
    found = changed(tmp_path, tokenizer=TOKENIZER | {"added_tokens": tokens})
    assert len(found.changes) == side_texts.MOST
    assert found.problems == ("special tokens: 7 further differences are left out",)


def test_releases_are_compared_by_facts_that_have_a_source() -> None:
    found = texts_of_releases(find("v3.2"), find("v4-pro"))
    assert found.compared == ("chat template", "some special tokens")
    assert said(found)[1:] == [
        ("special tokens", "<think>", 128_798, 128_821),
        ("special tokens", "</think>", 128_799, 128_822),
    ]
    assert texts_of_releases(find("v3"), find("r1")) == Texts()
    # Two Jinja templates: nothing says whether they differ.
    assert texts_of_releases(find("v3"), find("v3.1")) == Texts()


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.alias[0])
def test_facts_of_texts_name_their_sources(release: Release) -> None:
    assert (release.chat_template is not None) == ("chat_template" in release.sources)
    assert bool(release.tokens) == ("tokens" in release.sources)
    assert all(0 <= number < release.config["vocab_size"] for number in release.tokens.values())
