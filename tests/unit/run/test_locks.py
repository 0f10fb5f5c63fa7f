"""A lock is held by one process at a time, however the others come and go."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from dsctl.core.errors import DsctlError, ResumeError, WorkError
from dsctl.run.locks import LOCK, Lock
from tests.unit.core.test_files import PLACES, Place


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "out" / ".dsctl"
    lock = Lock(folder)
    with pytest.raises(ResumeError, match=f"another dsctl is working here .process {os.getpid()}"):
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


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_of_its_own_is_not_opened(tmp_path: Path, place: Place) -> None:
    treasure, home = tmp_path / "treasure", tmp_path / "home"
    treasure.write_bytes(b"weights")
    home.mkdir()
    place(home / LOCK, treasure)
    with pytest.raises(DsctlError):
        Lock(home)
    assert treasure.read_bytes() == b"weights"
