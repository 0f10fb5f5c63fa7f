"""Ranks' folders in an object store: written there, read from there, merged from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cloud.server import BUCKET, Objects
from tests.support.command import dsctl


def test_ranks_are_spread_to_a_store_and_merged_from_it(
    objects: Objects, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSCTL_STAGING", str(tmp_path / "staging"))
    url = f"s3://{BUCKET}/ranks"
    dsctl("shard", source, url, "--tp", 2, "--ep", 2, "--workers", 1)
    dsctl("shard", source, tmp_path / "here", "--tp", 2, "--ep", 2, "--workers", 1)
    there = objects.contents("ranks")
    for path in (tmp_path / "here").rglob("*"):
        name = str(path.relative_to(tmp_path / "here"))
        assert path.is_dir() or name == "dsctl.json" or there.pop(name) == path.read_bytes()
    assert set(there) == {"dsctl.json"}
    dsctl("merge", url, tmp_path / "back", "--workers", 1)
    for path in source.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
