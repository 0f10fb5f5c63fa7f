"""A local folder: what it lists, what it reads, and that nothing outside of it is ever opened."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsctl.core.errors import SourceError
from dsctl.core.header import TensorSpec, build
from dsctl.stores.local import LocalFolder

DATA = bytes(range(256)) * 8


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    root = tmp_path / "root"
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "a.bin").write_bytes(DATA)
    (root / "sub" / "deeper" / "b.txt").write_text("b")
    (tmp_path / "outside.bin").write_text("secret")
    return LocalFolder.at(root)


def test_files_are_listed_with_their_sizes(folder: LocalFolder) -> None:
    assert folder.files() == {"a.bin": len(DATA), "sub/deeper/b.txt": 1}


@pytest.mark.parametrize("name", [".git", ".dsctl", ".cache", "__pycache__"])
def test_what_is_no_part_of_a_checkpoint_is_left_out(folder: LocalFolder, name: str) -> None:
    (Path(folder.root) / name).mkdir()
    (Path(folder.root) / name / "x").touch()
    assert folder.files().keys() == {"a.bin", "sub/deeper/b.txt"}


def test_pipes_and_linked_folders_are_no_files(folder: LocalFolder) -> None:
    os.mkfifo(Path(folder.root) / "pipe")
    (Path(folder.root) / "link").symlink_to("sub")
    assert folder.files().keys() == {"a.bin", "sub/deeper/b.txt"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(DATA)), st.integers(0, len(DATA)))
def test_ranges_are_read(folder: LocalFolder, one: int, two: int) -> None:
    begin, end = sorted((one, two))
    buffer = bytearray(end - begin)
    folder.read_into("a.bin", begin, memoryview(buffer))
    assert folder.read("a.bin", begin, end) == bytes(buffer) == DATA[begin:end]


def test_reading_beyond_the_end_is_refused(folder: LocalFolder) -> None:
    with pytest.raises(SourceError, match="file ends at byte 2,048"):
        folder.read("a.bin", 2000, 2049)
    with pytest.raises(SourceError, match="file ends at byte 2,048"):
        folder.read_into("a.bin", 2000, memoryview(bytearray(49)))


@pytest.mark.parametrize("name", ["missing.bin", "sub"])
def test_what_cannot_be_read_is_a_source_error(folder: LocalFolder, name: str) -> None:
    with pytest.raises(SourceError):
        folder.read(name, 0, 1)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "sub/../../outside.bin", "", "a\0b", "..\\x", ".."])
def test_names_that_lead_out_are_refused(folder: LocalFolder, name: str) -> None:
    with pytest.raises(SourceError, match="leads out"):
        folder.path(name)


@pytest.mark.parametrize("target", ["../outside.bin", "/etc/hostname", "..", "/dev/zero"])
def test_links_that_lead_out_are_refused(folder: LocalFolder, target: str) -> None:
    (Path(folder.root) / "link").symlink_to(target)
    with pytest.raises(SourceError, match="link out of the folder"):
        folder.files()
    with pytest.raises(SourceError, match="link out of the folder"):
        folder.read("link", 0, 1)


def test_a_linked_folder_does_not_lead_out(folder: LocalFolder) -> None:
    (Path(folder.root) / "door").symlink_to("..")
    with pytest.raises(SourceError, match="link out of the folder"):
        folder.read("door/outside.bin", 0, 1)


def test_links_within_are_followed(folder: LocalFolder) -> None:
    (Path(folder.root) / "link.bin").symlink_to("a.bin")
    assert folder.files()["link.bin"] == len(DATA) and folder.read("link.bin", 0, 4) == DATA[:4]


def test_a_folder_reached_by_a_link_is_itself(folder: LocalFolder, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(folder.root)
    assert LocalFolder.at(tmp_path / "alias") == folder


def test_a_pipe_is_not_waited_for(folder: LocalFolder) -> None:
    os.mkfifo(Path(folder.root) / "pipe")
    with pytest.raises(SourceError):
        folder.read("pipe", 0, 1)


def test_a_single_file_is_a_store_of_its_own(tmp_path: Path) -> None:
    header, _ = build({"a": TensorSpec("U8", (4,))})
    (tmp_path / "x.safetensors").write_bytes(header + b"1234")
    (tmp_path / "y.safetensors").write_bytes(header + b"1234")
    store = LocalFolder.at(tmp_path / "x.safetensors")
    assert store.files() == {"x.safetensors": len(header) + 4} and store.place.endswith("x.safetensors")
    assert store.head("x.safetensors", len(header) + 4) == header


@pytest.mark.parametrize("name", ["nothing", "a.bin"])
def test_what_is_no_checkpoint_is_refused(folder: LocalFolder, name: str) -> None:
    with pytest.raises(SourceError):
        LocalFolder.at(Path(folder.root) / name)


def test_a_store_goes_to_other_processes(folder: LocalFolder) -> None:
    assert pickle.loads(pickle.dumps(folder)) == folder
    assert not folder.remote and folder.revision == ""
