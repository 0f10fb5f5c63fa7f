"""Whole files from a hub, each compared with the size and the digest that the hub's listing gives. No torch."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dsctl.core.errors import PlanError, SourceError, VerifyFailed, WorkError
from dsctl.core.files import refusal
from dsctl.core.lists import globs
from dsctl.stores import store_at
from dsctl.stores.hub import SCHEME, HubRepository
from dsctl.stores.hub_entries import HubFile
from dsctl.stores.threads import threads

CONNECTIONS = 8
CHUNK = 4 << 20


class CheckedFile(NamedTuple):
    """A local file that matches the hub's listing; `digest` is of the kind that the listing gives."""

    name: str
    size: int
    digest: str


# The work on each file; the second argument says whether it is still wanted.
Task = Callable[[HubFile, Callable[[], bool]], CheckedFile | str]


@dataclass(frozen=True, slots=True)
class Order:
    """Files of one commit to download, into a given folder or, without one, the hub's cache."""

    repository: HubRepository
    folder: Path | None
    files: tuple[HubFile, ...]

    @property
    def place(self) -> Path:
        """The folder that will hold the files."""
        return self.folder or self.repository.snapshot()

    @property
    def nbytes(self) -> int:
        return sum(listed.size for listed in self.files)

    @property
    def lacking(self) -> tuple[HubFile, ...]:
        """The files that are missing or shorter than listed."""
        return tuple(listed for listed in self.files if _size(self.place / listed.name) != listed.size)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def order(
    text: str, folder: Path | None, include: str | Iterable[str] = (), exclude: str | Iterable[str] = ()
) -> Order:
    """The files to download for `org/name[@revision]`; globs match names with their folders.

    Raises:
        SourceError: the repository or revision does not exist, access is denied, or the hub is offline.
        PlanError: no file is selected, or the folder is a file. UsageError: these are not globs.
    """
    include, exclude = globs("include", include), globs("exclude", exclude)
    store = store_at(text if text.startswith(SCHEME) else SCHEME + text)
    if not isinstance(store, HubRepository):
        raise SourceError(f"{text}: cannot compare with the hub while offline", hint="unset HF_HUB_OFFLINE")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise PlanError(f"{folder}: exists and is not a folder")
    files = tuple(listed for listed in store.listing if _wanted(listed.name, include, exclude))
    if not files:
        raise PlanError(f"{store.place}: no file is selected", hint="check the globs of --include and --exclude")
    return Order(store, folder, files)


def _wanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    taken = not include or any(fnmatchcase(name, glob) for glob in include)
    return taken and not any(fnmatchcase(name, glob) for glob in exclude)


def check_room(order: Order) -> None:
    """Refuse a download that does not fit on the disk.

    Raises:
        PlanError: it does not fit; the message has the needed and the free bytes.
    """
    place = next(path for path in (order.place, *order.place.absolute().parents) if path.exists())
    free, needed = shutil.disk_usage(place).free, sum(listed.size for listed in order.lacking)
    if needed > free:
        raise PlanError(
            f"{order.place}: needs {needed:,} bytes of disk, {free:,} are free",
            hint="convert or cut it while downloading instead: dsctl convert, dsctl slice",
        )


def download(order: Order, report: Callable[[CheckedFile], None] = lambda checked: None) -> list[CheckedFile]:
    """Download missing files and check every file; a wrong one is downloaded once more.

    Raises:
        PlanError: the disk is too small.
        SourceError: a file cannot be downloaded.
        VerifyFailed: a file was wrong twice; `issues` lists every such file.
    """
    check_room(order)
    return _each(order, lambda listed, going: _fetched(order, listed, going), report)


def verify(order: Order, report: Callable[[CheckedFile], None] = lambda checked: None) -> list[CheckedFile]:
    """Compare local files with the hub's listing; nothing is downloaded.

    Raises:
        VerifyFailed: a file is missing or wrong; `issues` lists all of them.
    """
    return _each(order, lambda listed, going: _checked(order.place / listed.name, listed), report)


def _each(order: Order, task: Task, report: Callable[[CheckedFile], None]) -> list[CheckedFile]:
    good, wrong = [], []
    with threads(CONNECTIONS) as pool:
        futures = [pool.submit(partial(task, listed, pool.going)) for listed in _largest_first(order.files)]
        for future in as_completed(futures):
            found = future.result()
            if isinstance(found, str):
                wrong.append(found)
                continue
            good.append(found)
            report(found)
    if wrong:
        what = wrong[0] if len(wrong) == 1 else f"{order.place}: {len(wrong)} files are missing or wrong"
        raise VerifyFailed(what, issues=sorted(wrong), hint="download it again: correct files are kept")
    return sorted(good)


def _largest_first(files: Iterable[HubFile]) -> list[HubFile]:
    return sorted(files, key=lambda listed: -listed.size)


def _fetched(order: Order, listed: HubFile, going: Callable[[], bool]) -> CheckedFile | str:
    found: CheckedFile | str = ""
    for anew in (False, True):
        found = _checked(order.repository.fetch(listed.name, order.folder, anew, going), listed)
        if isinstance(found, CheckedFile):
            break
    return found


def _checked(path: Path, listed: HubFile) -> CheckedFile | str:
    """The file if it is correct, else its problem."""
    size = _size(path)
    if size is None:
        return f"{listed.name}: missing"
    if size != listed.size:
        return f"{listed.name}: {size:,} bytes, the hub lists {listed.size:,}"
    expected = listed.sha256 or listed.blob
    if expected is None:
        return f"{listed.name}: the hub lists no digest to compare with"
    found = _digest(path, size, git_blob=listed.sha256 is None)
    if found != expected:
        return f"{listed.name}: its contents differ from the hub's ({found[:12]}, the hub lists {expected[:12]})"
    return CheckedFile(listed.name, size, found)


def _digest(path: Path, size: int, git_blob: bool) -> str:
    """sha256, or SHA-1 over git's blob header and the contents (git-hash-object)."""
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if git_blob else hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            buffer = bytearray(CHUNK)
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise refusal(path, error, WorkError) from None
    return digest.hexdigest()
