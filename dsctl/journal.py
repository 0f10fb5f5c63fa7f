"""What survives a crash: an append-only log of receipts, atomic replacement of files, and a lock on the folder.

A name under which dsctl keeps something may hold anything by now: a link, a pipe, a file with a second name. Only a
regular file with one name is opened, and nothing is truncated before that is known.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from dsctl.errors import ResumeError, WorkError

JOURNAL = "journal.jsonl"
LOCK = "lock"
NEW = ".new"
# The longest file of its own that dsctl reads.
MOST_BYTES = 200_000_000
# How often a lock is tried for that vanishes with the run that held it.
ATTEMPTS = 100
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
    except PermissionError:
        # A folder may be written to and not be readable; then everything is synced.
        os.sync()
    except OSError as error:
        raise failure(folder, error) from None


def make_folders(folder: Path) -> None:
    """Make a folder and the missing ones above it; each is durable in its parent.

    Raises:
        WorkError: it cannot be made.
    """
    missing = [one for one in (folder, *folder.parents) if not one.is_dir()]
    try:
        for one in reversed(missing):
            _make_folder(one)
            sync_folder(one.parent)
    except OSError as error:
        raise failure(folder, error) from None


def _make_folder(folder: Path) -> None:
    while not folder.is_dir():
        try:
            os.mkdir(folder)
        except FileExistsError:
            # Another run may have made it, and have removed it by now: one look must say what is there.
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.lstat(folder).st_mode) and not folder.is_dir():
                    raise


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of the bytes at an offset, however few the system takes at a time.

    Raises:
        OSError: it takes no more of them.
    """
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        if not count:
            raise OSError(errno.EIO, "the system writes nothing")
        view, offset = view[count:], offset + count


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a file that dsctl keeps under this name. Nothing is followed, waited for or truncated.

    Raises:
        OSError: there is no such file, or it is a link, a pipe, a folder, or a file with a second name.
    """
    with contextlib.suppress(FileNotFoundError):
        _refuse_foreign(path, os.lstat(path))
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        _refuse_foreign(path, os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_foreign(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = {stat.S_IFLNK: "is a link", stat.S_IFDIR: "is a folder"}.get(stat.S_IFMT(status.st_mode))
        raise OSError(errno.EINVAL, what or "is not a regular file", str(path))
    if status.st_nlink > 1:
        raise OSError(errno.EINVAL, "has a second name (a hard link)", str(path))


def read_own(path: Path) -> bytes:
    """The bytes of a file that dsctl keeps under this name.

    Raises:
        OSError: as `open_own`; or it is longer than any that dsctl writes.
    """
    with open(open_own(path, os.O_RDONLY), "rb") as file:
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise OSError(errno.EFBIG, f"is longer than {MOST_BYTES:,} bytes", str(path))
        return file.read(MOST_BYTES)


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
        make_folders(path.parent)
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
            what = f"{self.path}: {error.strerror or error}"
            raise ResumeError(what, hint="remove it, or choose another target") from None

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
            raise WorkError(f"{self.path}: cannot be locked: {error.strerror or error}", hint=hint) from None
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


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Change files of a folder, in which nothing may be left behind, beside no other dsctl that does.

    Raises:
        ResumeError: another one is at it. WorkError: the folder cannot be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failure(folder, error) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "another dsctl is changing files of this folder"
            raise ResumeError(f"{folder}: {what}", hint="wait for it to end") from None
        except OSError:
            # Not every file system can lock a folder that is open for reading only.
            pass
        yield
    finally:
        os.close(descriptor)
