"""What survives a crash: receipts, locks, files of dsctl's own; whatever lies in their place."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsctl.core import files as durable
from dsctl.core.errors import DsctlError, ResumeError, WorkError
from dsctl.core.files import make_folders, open_own, read_own
from dsctl.run.journal import JOURNAL, LOCK, Journal, Lock

ONE, TWO = {"job": 1, "counts": {"cast": 2}}, {"job": 2, "counts": {}}


def line(record: Any) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def test_records_come_back(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(ONE)
        journal.append(TWO)
    with Journal(tmp_path) as journal:
        assert journal.records == [ONE, TWO]


@pytest.mark.parametrize("taken", [1, 5, 1000])
def test_a_line_that_is_written_bit_by_bit_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, bytes(data)[:taken], at))
    with Journal(tmp_path) as journal:
        journal.append(ONE)
        journal.append(TWO)
    assert (tmp_path / JOURNAL).read_bytes() == line(ONE) + line(TWO)


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_an_append_that_fails_leaves_nothing_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real = os.pwrite

    def full(file: int, data: Any, at: int) -> int:
        if len(data) > 4:
            return real(file, bytes(data)[:4], at)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def failing(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Journal(tmp_path) as journal:
        journal.append(ONE)
        with monkeypatch.context() as patch, pytest.raises(WorkError):
            patch.setattr(os, call, full if call == "pwrite" else failing)
            journal.append({"job": 7, "counts": {"cast": 70_000}})
        journal.append(TWO)
    assert (tmp_path / JOURNAL).read_bytes() == line(ONE) + line(TWO)


@pytest.mark.parametrize(
    "torn", [b'{"job":7,"cou', b'{"job":7,"cou{"job":8,"counts":{}}\n', b"\0" * 40, b"\0" * 40 + b"\n", b"\xff\xfe\n"]
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_torn_record_is_work_not_done_wherever_it_stands(tmp_path: Path, torn: bytes, place: int) -> None:
    lines = [line(ONE), line(TWO)]
    lines.insert(place, torn if torn.endswith(b"\n") or place == 2 else torn + b"\n")
    (tmp_path / JOURNAL).write_bytes(b"".join(lines))
    with Journal(tmp_path) as journal:
        assert journal.records == [ONE, TWO]
        journal.append({"job": 3, "counts": {}})
    assert (tmp_path / JOURNAL).read_bytes() == line(ONE) + line(TWO) + line({"job": 3, "counts": {}})


@pytest.mark.parametrize(
    "record",
    [None, 7, [], {"job": None, "counts": None}, {"job": 1, "counts": {"cast": None}}, {"job": True, "counts": {}},
     {"file": None, "size": None, "sha256": None}, {"file": "a", "size": -1, "sha256": "0" * 64},
     {"job": -1, "counts": {}}],
)  # fmt: skip
def test_a_whole_line_of_something_else_is_not_a_journal(tmp_path: Path, record: Any) -> None:
    (tmp_path / JOURNAL).write_bytes(line(ONE) + line(record))
    with pytest.raises(ResumeError, match="a line is not valid"):
        Journal(tmp_path)


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "out" / ".dsctl"
    lock = Lock(folder)
    with pytest.raises(ResumeError, match=f"another dsctl is at work here .process {os.getpid()}"):
        Lock(folder)
    lock.release()
    assert not folder.exists()
    Lock(folder).release()


def test_a_lock_of_a_file_that_is_gone_is_none(tmp_path: Path) -> None:
    folder = tmp_path / ".dsctl"
    lock = Lock(folder)
    lock.path.unlink()
    assert not lock.held()
    again = Lock(folder)
    assert again.held()
    lock.release()
    assert again.held() and again.path.exists()
    again.release()


def test_locks_that_come_and_go_are_held_by_one_at_a_time(tmp_path: Path) -> None:
    """Each holder removes the folder in the end, beside others that are just opening it."""
    folder, inside, most, errors = tmp_path / ".dsctl", [0], [0], []

    def work() -> None:
        for _ in range(150):
            try:
                lock = Lock(folder)
            except ResumeError:
                continue
            except DsctlError as error:
                errors.append(error)
                continue
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and not errors


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(WorkError, match="cannot be locked: No locks available"):
        Lock(tmp_path / ".dsctl")


def link(path: Path, treasure: Path) -> None:
    path.symlink_to(treasure)


def second_name(path: Path, treasure: Path) -> None:
    os.link(treasure, path)


def pipe(path: Path, treasure: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, treasure: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("place", [link, second_name, pipe, folder])
def test_only_a_file_of_its_own_is_opened(tmp_path: Path, place: Callable[[Path, Path], None]) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_bytes(b"weights")
    for name in (LOCK, JOURNAL):
        home = tmp_path / name
        home.mkdir()
        place(home / name, treasure)
        with pytest.raises(OSError):
            read_own(home / name)
        with pytest.raises(OSError):
            open_own(home / name, os.O_RDWR | os.O_CREAT)
        with pytest.raises(DsctlError):
            Lock(home) if name == LOCK else Journal(home)
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
