"""Files are complete or absent: durable writes, dsctl's own files, and the system's refusals in words.

A path at which dsctl keeps a file may by now be a link, a pipe or a file with a second name. Only a regular file with
one name is opened, and nothing is truncated before that is checked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from dsctl.core.digests import Sums, hasher
from dsctl.core.errors import DsctlError, ResumeError, WorkError, words_of

_Kind = TypeVar("_Kind", bound=DsctlError)

# The suffix of an output until it is complete, and of a sibling that will replace a file.
PART, NEW = ".part", ".new"
# The longest file of its own that dsctl reads.
MOST_BYTES = 200_000_000
_DENIED = "this user may not write there: change the permissions, or name another folder"
_HINTS = {
    errno.ENOSPC: "free some space and run the same command again: it resumes",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
}


def failure(path: str | Path, error: OSError) -> WorkError:
    """The error for a refused write: a WorkError whose hint depends on the reason."""
    return refusal(path, error, WorkError, _HINTS.get(error.errno or 0))


def refusal(path: str | Path, error: OSError, kind: type[_Kind], hint: str | None = None) -> _Kind:
    """The error for a refused call on a path: one of this kind, with this hint."""
    return kind(f"{path}: {words_of(error)}", hint=hint)


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
        # A folder can be writable without being readable; then everything is synced.
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
            # A different run may have created and removed it since: one call must decide.
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.lstat(folder).st_mode) and not folder.is_dir():
                    raise


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of the bytes at an offset, even if the system takes only a few per call.

    Raises:
        OSError: it takes no more of them.
    """
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        if not count:
            raise OSError(errno.EIO, "the system wrote no bytes")
        view, offset = view[count:], offset + count


def open_own(path: Path, flags: int) -> int:
    """Open a file that dsctl keeps at this path. It follows no link, waits for nothing and truncates nothing.

    Raises:
        OSError: the file does not exist, or is a link, a pipe, a folder or a file with a second name.
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
    """The bytes of a file that dsctl keeps at this path.

    Raises:
        OSError: as `open_own`; or the file is longer than any that dsctl writes.
    """
    with open(open_own(path, os.O_RDONLY), "rb") as file:
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise OSError(errno.EFBIG, f"is longer than {MOST_BYTES:,} bytes", str(path))
        return file.read(MOST_BYTES)


def replace_file(path: Path, data: bytes | Iterable[bytes], sha256: bool = False) -> Sums:
    """Write a whole file so that a reader sees all of it or none: sibling, fsync, rename, fsync of the folder.

    Returns the digests of the written bytes; the SHA-256 only if it is asked for.

    Raises:
        WorkError: the folder cannot be written.
    """
    sums = write_beside(path, data, sha256=sha256)
    take_place(path)
    return sums


def beside(path: Path) -> Path:
    """The sibling that holds a file's new bytes until they are complete."""
    return path.with_name(path.name + NEW)


def write_beside(path: Path, data: bytes | Iterable[bytes], mode: int | None = None, sha256: bool = False) -> Sums:
    """Write and fsync the sibling that will replace a file, with these permissions; return its digests.

    Raises:
        WorkError: the folder cannot be written.
    """
    blake3, sha = hasher(), hashlib.sha256()
    sibling = beside(path)
    try:
        make_folders(path.parent)
        sibling.unlink(missing_ok=True)
        with os.fdopen(os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
            for chunk in (data,) if isinstance(data, bytes) else data:
                blake3.update(chunk)
                if sha256:
                    sha.update(chunk)
                file.write(chunk)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise failure(path, error) from None
    return Sums(blake3.digest().hex(), sha.hexdigest() if sha256 else "")


def take_place(path: Path) -> None:
    """Replace a file with its finished sibling.

    Raises:
        WorkError: the folder cannot be written.
    """
    try:
        os.replace(beside(path), path)
    except OSError as error:
        raise failure(path, error) from None
    sync_folder(path.parent)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder while its files are changed: only one dsctl at a time may do that.

    Raises:
        ResumeError: a different dsctl holds the lock. WorkError: the folder cannot be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failure(folder, error) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "another dsctl is changing files in this folder"
            raise ResumeError(f"{folder}: {what}", hint="wait for it to end") from None
        except OSError:
            # Not every file system can lock a folder that is open for reading only.
            pass
        yield
    finally:
        os.close(descriptor)


def existing(path: Path) -> Path:
    """The path, or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return path


def read_small(path: str | Path, most: int) -> bytes:
    """The bytes of a regular file of at most `most` bytes.

    Raises:
        OSError: it cannot be read, is a folder, a device or a pipe, or is longer.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        raw = bytearray()
        while chunk := file.read(most + 1 - len(raw)):
            raw += chunk
    if len(raw) > most:
        raise OSError(errno.EFBIG, f"has more than {most:,} bytes")
    return bytes(raw)
