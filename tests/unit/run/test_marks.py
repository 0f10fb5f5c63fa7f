"""What a target says of itself is read back as it was written, and as nothing if it is anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsctl.run.identity import HeldFile, Times
from dsctl.run.marks import NOBODY, Mark, mark_of, read_mark, sign_nobody

HELD = {"a.safetensors": HeldFile("0" * 64, Times(1, 2, 3)), "far.safetensors": HeldFile("1" * 64)}
BEGUN: dict[str, Any] = {
    "fingerprint": "f", "version": "1.0", "request": {"to": "bf16"}, "revision": "r", "work": "w",
    "source": {"place": "/src", "identity": {name: one.json() for name, one in HELD.items()}},
    "files": ["a.safetensors", "dsctl.json"],
}  # fmt: skip


def test_the_mark_of_an_unfinished_target() -> None:
    files = ("a.safetensors", "dsctl.json")
    assert mark_of(BEGUN, False) == Mark(False, "f", "1.0", {"to": "bf16"}, "r", "/src", HELD, "w", files)


def test_the_mark_of_a_complete_target_names_its_files_by_their_digests() -> None:
    said = BEGUN | {"dsctl": "2.0", "files": {"a.safetensors": {"size": 1, "sha256": "x"}}}
    mark = mark_of(said, True)
    assert mark is not None and (mark.complete, mark.version, mark.files) == (True, "2.0", ("a.safetensors",))


def test_a_mark_of_an_earlier_version_says_less() -> None:
    assert mark_of({"fingerprint": "f"}, False) == Mark(False, "f", "", None, "", "", {}, "", ())


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        7,
        {},
        {"fingerprint": 7},
        BEGUN | {"files": "a"},
        BEGUN | {"files": {"a": 1}},
        BEGUN | {"source": 7},
        BEGUN | {"source": {"identity": {"a": {}}}},
        BEGUN | {"source": {"identity": {"a": {"sample": "", "inode": "x"}}}},
    ],
)
def test_anything_else_is_no_mark(said: Any) -> None:
    assert mark_of(said, False) is None


def test_a_folder_that_is_being_emptied_is_nobody_s(tmp_path: Path) -> None:
    sign_nobody(tmp_path, ["old.safetensors"])
    mark = read_mark(tmp_path)
    assert mark is not None and (mark.fingerprint, mark.files) == (NOBODY, ("old.safetensors",))


def test_what_is_complete_comes_before_what_was_begun(tmp_path: Path) -> None:
    assert read_mark(tmp_path) is None
    sign_nobody(tmp_path, [])
    (tmp_path / "dsctl.json").write_text(json.dumps(BEGUN | {"files": {}}))
    mark = read_mark(tmp_path)
    assert mark is not None and mark.complete and mark.fingerprint == "f"
    (tmp_path / "dsctl.json").write_text("[")
    assert read_mark(tmp_path) is None
