"""What survives a crash: an append-only log of receipts, atomic replacement of files, and a lock on the folder.

A name under which dsctl keeps something may hold anything by now: a link, a pipe, a file with a second name. Only a
regular file with one name is opened, and nothing is truncated before that is known.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dsctl.core.errors import ResumeError, WorkError
from dsctl.core.files import failure, make_folders, open_own, read_own, refusal, replace_file, sync_folder, write_all

JOURNAL = "journal.jsonl"
LOCK = "lock"
# How often a lock is tried for that vanishes with the run that held it.
ATTEMPTS = 100


class Journal:
    """The log of one run, one JSON object a line; a line that is torn, wherever it stands, was not written.

    Raises:
        ResumeError: it cannot be read, or is not a journal. WorkError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self._descriptor = -1
        self._size = 0
        raw = self._read()
        self.records, whole = _records(raw, self.invalid)
        if whole:
            self._open(len(raw))
        else:
            self.keep(self.records)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> bytes:
        try:
            return read_own(self.path)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise refusal(self.path, error, ResumeError, "remove it, or choose another target") from None

    def _open(self, size: int) -> None:
        try:
            self._descriptor, self._size = open_own(self.path, os.O_RDWR | os.O_CREAT), size
        except OSError as error:
            raise failure(self.path, error) from None
        sync_folder(self.path.parent)

    def invalid(self) -> ResumeError:
        """What to raise where a line is not one of a journal."""
        return ResumeError(f"{self.path}: a line is not valid", hint="start over with --force")

    def keep(self, records: Sequence[dict[str, Any]]) -> None:
        """Forget all records but these.

        Raises:
            WorkError: the journal cannot be written.
        """
        self.close()
        lines = [_line(record) for record in records]
        replace_file(self.path, lines)
        self._open(sum(map(len, lines)))
        self.records = list(records)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record and have it on the disk before returning.

        Raises:
            WorkError: it cannot be written.
        """
        line = _line(record)
        try:
            # What an append that failed left behind must not become the beginning of this line.
            os.ftruncate(self._descriptor, self._size)
            write_all(self._descriptor, line, self._size)
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise failure(self.path, error) from None
        self._size += len(line)


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _records(raw: bytes, invalid: Callable[[], ResumeError]) -> tuple[list[dict[str, Any]], bool]:
    """The records of a journal, and whether there is nothing besides them."""
    *lines, rest = raw.split(b"\n")
    records, torn = [], bool(rest)
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            torn = True
            continue
        if not _is_record(record):
            raise invalid()
        records.append(record)
    return records, not torn


def _is_record(record: Any) -> bool:
    """Whether a JSON value is a receipt: of a job with its counts, or of a file with its size and digest."""
    if not isinstance(record, dict):
        return False
    if "file" in record:
        return isinstance(record["file"], str) and is_count(record.get("size")) and _is_digest(record.get("sha256"))
    counts = record.get("counts")
    return is_count(record.get("job")) and isinstance(counts, dict) and all(map(is_count, counts.values()))


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number that counts bytes, jobs or values."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _busy(place: str, owner: str) -> ResumeError:
    what = f"another dsctl is at work here (process {owner})"
    return ResumeError(f"{place}: {what}", hint="wait for it to end, or choose another target")


def refuse_busy(folder: Path) -> None:
    """Refuse a folder whose lock a living process holds; nothing is made or taken.

    Raises:
        ResumeError: one does.
    """
    try:
        descriptor = open_own(folder / LOCK, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(str(folder.parent), _owner(descriptor)) from None
    except OSError:
        return
    finally:
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    said = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
    return said if said.isdecimal() else "unknown"


class Lock:
    """A folder's lock: held by one living process, let go by the system when that ends, however it ends.

    The folder is made if it is missing; `place` is what people call what is locked.

    Raises:
        ResumeError: another process holds it.
        WorkError: the file system has no locks, or the folder cannot be written.
    """

    def __init__(self, folder: Path, place: str = "") -> None:
        self.path, self._place = folder / LOCK, place or str(folder.parent)
        for _ in range(ATTEMPTS):
            self._descriptor = self._try()
            if self.held():
                break
            # The run that held it has ended, and removed the file with its folder.
            os.close(self._descriptor)
        else:
            raise self._busy("unknown")
        # The number is for people: a disk without room for it is no reason to stop.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _try(self) -> int:
        for _ in range(ATTEMPTS):
            try:
                make_folders(self.path.parent)
                descriptor = open_own(self.path, os.O_RDWR | os.O_CREAT)
                break
            except FileNotFoundError:
                continue
            except OSError as error:
                raise failure(self.path, error) from None
        else:
            raise self._busy("unknown")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise self._busy(owner) from None
        except OSError as error:
            os.close(descriptor)
            hint = "dsctl needs a file system with locks (flock): choose another target"
            raise refusal(f"{self.path}: cannot be locked", error, WorkError, hint) from None
        return descriptor

    def _busy(self, owner: str) -> ResumeError:
        return _busy(self._place, owner)

    def held(self) -> bool:
        """Whether the file that is locked is still the one in the folder."""
        try:
            there, mine = os.lstat(self.path), os.fstat(self._descriptor)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def release(self) -> None:
        """Let go of the lock; the folder goes with it where it holds nothing else."""
        try:
            if self.held() and os.listdir(self.path.parent) == [self.path.name]:
                self.path.unlink()
                self.path.parent.rmdir()
        except OSError:
            # Another run has put something there, or may not remove it: it is in nobody's way.
            pass
        finally:
            os.close(self._descriptor)
