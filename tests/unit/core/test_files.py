"""Files of dsctl's own, whatever lies in their place; folders that are durable in their parents."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dsctl.core import files as durable
from dsctl.core.files import make_folders, open_own, read_own

Place = Callable[[Path, Path], None]


def link(path: Path, treasure: Path) -> None:
    path.symlink_to(treasure)


def second_name(path: Path, treasure: Path) -> None:
    os.link(treasure, path)


def pipe(path: Path, treasure: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, treasure: Path) -> None:
    path.mkdir()


PLACES = (link, second_name, pipe, folder)


@pytest.mark.parametrize("place", PLACES)
def test_only_a_file_of_its_own_is_opened(tmp_path: Path, place: Place) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_bytes(b"weights")
    place(tmp_path / "own", treasure)
    with pytest.raises(OSError):
        read_own(tmp_path / "own")
    with pytest.raises(OSError):
        open_own(tmp_path / "own", os.O_RDWR | os.O_CREAT)
    assert treasure.read_bytes() == b"weights"


def test_what_is_read_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "MOST_BYTES", 10)
    (tmp_path / "long").write_bytes(b"12345678901")
    with pytest.raises(OSError, match="longer than 10 bytes"):
        read_own(tmp_path / "long")


def test_folders_are_durable_in_their_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync_folder", synced.append)
    make_folders(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
