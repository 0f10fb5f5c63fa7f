"""Two names of one place are found to be one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsctl.stores.places import overlap, path_of
from tests.flows.test_resume import contents
from tests.support.command import dsctl, dsctl_fails

SAME = [
    ("s3://weights/victim", "s3a://weights/victim"),
    ("s3://weights/victim", "s3://weights/victim/inner"),
    ("s3a://weights/victim/", "simplecache::s3://weights/victim"),
    ("zip://inner::s3://weights/victim/a.zip", "s3://weights/victim"),
    ("memory://victim", "memory:///victim"),
    ("file:///tmp/victim", "/tmp/other/../victim"),
    ("simplecache::local:///tmp/victim", "/tmp"),
    ("ftp://one@host/victim", "ftp://two:word@host/victim"),
]
APART = [
    ("s3://weights/victim", "s3://weights/victim-bf16"),
    ("s3://weights/victim", "s3://other/victim"),
    ("s3://weights/victim", "memory://weights/victim"),
    ("s3://tmp/victim", "/tmp/victim"),
    ("ftp://host/victim", "ftp://elsewhere/victim"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_names_of_one_place_are_one(one: str, other: str) -> None:
    assert overlap(one, other) and overlap(other, one)


@pytest.mark.parametrize(("one", "other"), APART)
def test_places_that_only_sound_alike_are_two(one: str, other: str) -> None:
    assert not overlap(one, other) and not overlap(other, one)


def test_a_link_leads_to_the_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    assert overlap(f"file://{tmp_path}/link", str(tmp_path / "real" / "inner"))


@pytest.mark.parametrize("said", ["file:///a/b", "local:///a/b", "file:/a/b", "local:/a/b", "/a/b"])
def test_a_scheme_of_this_machine_is_a_path(said: str) -> None:
    assert path_of(said) == "/a/b"


@pytest.mark.parametrize("how", ["local://{}", "file:{}", "simplecache::file://{}"])
def test_a_source_is_never_started_over(tmp_path: Path, how: str) -> None:
    dsctl("tiny", "v3.2", tmp_path / "seed", "--hidden", 256, "--vocab", 512, "--layers", 2)
    dsctl("convert", tmp_path / "seed", tmp_path / "victim", "--bf16", "--workers", 1)
    before, same = contents(tmp_path / "victim"), how.format(tmp_path / "victim")
    assert dsctl_fails("convert", tmp_path / "victim", same, "--fp8", "--force") == 30
    assert dsctl_fails("convert", same, tmp_path / "victim", "--fp8", "--force") == 30
    assert contents(tmp_path / "victim") == before
