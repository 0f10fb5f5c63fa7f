"""One object at a time, on a file system that fsspec keeps in memory; tests/cloud does the same against a server."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest

from dsctl.core.errors import WorkError
from dsctl.stores.uploads import Uploads


@pytest.fixture
def uploads() -> Uploads:
    return Uploads(f"memory://{uuid.uuid4().hex}")


def test_a_file_goes_up_whole_and_comes_back(uploads: Uploads, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    assert uploads.send("inner/a", tmp_path / "a") == 7
    assert uploads.read("inner/a") == b"weights"


def test_bytes_go_up_and_are_removed(uploads: Uploads) -> None:
    uploads.put("a.json", b"{}")
    assert uploads.read("a.json") == b"{}"
    uploads.remove("a.json")
    assert uploads.read("a.json") is None
    uploads.remove("a.json")


def test_after_the_end_nothing_goes_up(uploads: Uploads, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    uploads.stop()
    with pytest.raises(WorkError, match="the run has ended"):
        uploads.send("a", tmp_path / "a")
    assert uploads.read("a") is None


def test_a_store_without_parts_has_none_to_give_back(uploads: Uploads) -> None:
    uploads.abort()
    uploads.abort("a", 1.0)


def test_what_a_store_does_not_take_whole_is_an_error(
    uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    monkeypatch.setattr("dsctl.stores.objects.ATTEMPTS", 1)
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", lambda system, path: {"size": 3})
    with pytest.raises(WorkError, match=r"7 bytes were sent, 3 are there \(1 attempts\)"):
        uploads.send("a", tmp_path / "a")


def test_a_place_is_told_without_what_may_be_secret() -> None:
    assert Uploads("ftp://me:word@host/x").place("a") == "ftp://host/x/a"
