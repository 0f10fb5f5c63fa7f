"""What survives a crash: an append-only log of receipts, atomic replacement of files, and a lock on the folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dsctl.errors import ResumeError, WorkError

JOURNAL = "journal.jsonl"
LOCK = "lock"
NEW = ".new"
_DENIED = "this user may not write there: change the permissions, or name another folder"
_HINTS = {
    errno.ENOSPC: "free some space and run the same command again: it resumes",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
}


def failure(path: Path, error: OSError) -> WorkError:
    """What to raise where the system refuses to write."""
    return WorkError(f"{path}: {error.strerror or error}", hint=_HINTS.get(error.errno or 0))


def sync_folder(folder: Path) -> None:
    """Make renames and new names in a folder durable.

    Raises:
        WorkError: the disk fails.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise failure(folder, error) from None


def replace_file(path: Path, data: bytes | Iterable[bytes]) -> str:
    """Write a whole file so that a reader sees all of it or none: sibling, fsync, rename, fsync of the folder.

    Gives the sha256 of what was written.

    Raises:
        WorkError: the folder cannot be written.
    """
    digest = write_beside(path, data)
    take_place(path)
    return digest


def beside(path: Path) -> Path:
    """The sibling in which a file's new bytes wait until they are whole."""
    return path.with_name(path.name + NEW)


def write_beside(path: Path, data: bytes | Iterable[bytes], mode: int | None = None) -> str:
    """Write and fsync the sibling that shall take a file's place, with these permissions. Gives its sha256.

    Raises:
        WorkError: the folder cannot be written.
    """
    digest = hashlib.sha256()
    sibling = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sibling.unlink(missing_ok=True)
        with os.fdopen(os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
            for chunk in (data,) if isinstance(data, bytes) else data:
                digest.update(chunk)
                file.write(chunk)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise failure(path, error) from None
    return digest.hexdigest()


def take_place(path: Path) -> None:
    """Put a file's finished sibling in its place.

    Raises:
        WorkError: the folder cannot be written.
    """
    try:
        os.replace(beside(path), path)
    except OSError as error:
        raise failure(path, error) from None
    sync_folder(path.parent)


class Journal:
    """The log of one run, one JSON object a line; a torn last line is a line not written."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self._file = None
        self.records = list(self._read())
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  held for the run, closed by __exit__

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._file:
            self._file.close()

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) != len(raw):
            os.truncate(self.path, len(whole))
        for line in whole.splitlines():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                raise self.invalid() from None

    def invalid(self) -> ResumeError:
        """What to raise where a line is none of a journal."""
        return ResumeError(f"{self.path}: a line is not valid", hint="start over with --force")

    def keep(self, records: Sequence[dict[str, Any]]) -> None:
        """Forget all records but these.

        Raises:
            WorkError: the journal cannot be written.
        """
        replace_file(self.path, [_line(record) for record in records])
        assert self._file is not None
        self._file.close()
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  as above
        self.records = list(records)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record and have it on the disk before returning.

        Raises:
            WorkError: it cannot be written.
        """
        assert self._file is not None
        try:
            self._file.write(_line(record))
            os.fdatasync(self._file.fileno())
        except OSError as error:
            raise failure(self.path, error) from None


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


class Lock:
    """A folder's lock: held by one living process, let go by the system when that ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise ResumeError(
                f"{folder.parent}: another dsctl is at work here (process {owner or 'unknown'})",
                hint="wait for it to end, or choose another target",
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._descriptor)
