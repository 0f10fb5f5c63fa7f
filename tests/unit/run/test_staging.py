"""The folder in which files wait for an object store: where it is, whose, and what it gives back to the disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from dsctl.run.staging import empty, fingerprint_of, staging


def test_each_target_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSCTL_STAGING", str(tmp_path))
    one, other = staging("s3://bucket/one"), staging("s3://bucket/other")
    assert one.parent == other.parent == tmp_path and one != other
    assert one.name == hashlib.sha256(b"s3://bucket/one").hexdigest()[:16]
    monkeypatch.delenv("DSCTL_STAGING")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert staging("s3://bucket/one") == tmp_path / "cache" / "dsctl" / "staging" / one.name


def test_whose_work_it_holds(tmp_path: Path) -> None:
    assert fingerprint_of(tmp_path) == ""
    (tmp_path / ".dsctl").mkdir()
    (tmp_path / ".dsctl" / "request.json").write_text(json.dumps({"fingerprint": "begun"}))
    assert fingerprint_of(tmp_path) == "begun"
    (tmp_path / "dsctl.json").write_text(json.dumps({"fingerprint": "made"}))
    assert fingerprint_of(tmp_path) == "made"
    (tmp_path / "dsctl.json").write_text("[]")
    assert fingerprint_of(tmp_path) == "begun"


def test_a_file_that_was_sent_keeps_its_size_and_no_blocks(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "a"
    empty(path, 1 << 30)
    assert path.stat().st_size == 1 << 30 and path.stat().st_blocks < 64
