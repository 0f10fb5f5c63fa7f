"""A folder on this machine, or a single file in one. Nothing outside the folder is ever opened."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dsctl.core.errors import SourceError
from dsctl.core.files import refusal
from dsctl.core.header import read_head

# The headers of V3's files have about 75 kB.
FIRST_READ = 128 << 10
# A name with one of these must be resolved to see whether it stays inside.
_PARTING = frozenset("/\\\0")


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder by its resolved path; `only` restricts it to one file.

    A file that cannot be reached, such as a broken link, is an error; if `lenient`, it is omitted.
    """

    root: str
    only: str | None = None
    lenient: bool = False

    @classmethod
    def at(cls, path: str | Path) -> LocalFolder:
        """The folder at a path, or the folder of a single safetensors file.

        Raises:
            SourceError: the path does not exist or cannot be read.
        """
        place = Path(path)
        try:
            if place.is_dir():
                return cls(str(place.resolve()))
            if place.is_file() and place.suffix == ".safetensors":
                return cls(str(place.parent.resolve()), place.name)
            if place.exists():
                raise SourceError(f"{path}: neither a folder nor a .safetensors file")
        except OSError as error:
            raise refusal(path, error, SourceError) from None
        raise SourceError(f"{path}: no such file or folder", hint="`dsctl models` lists the releases known by name")

    @property
    def place(self) -> str:
        return os.path.join(self.root, self.only) if self.only else self.root

    def files(self) -> dict[str, int]:
        if self.only:
            return {self.only: os.stat(self.path(self.only)).st_size}
        found: dict[str, int] = {}
        lost: dict[str, SourceError] = {}
        self._walk("", found, lost)
        if lost and not self.lenient:
            raise next(iter(lost.values()))
        return dict(sorted(found.items()))

    def unreachable(self) -> dict[str, str]:
        """The problem of every name that `files` refuses or omits."""
        lost: dict[str, SourceError] = {}
        if not self.only:
            self._walk("", {}, lost)
        return {name: error.message.removeprefix(f"{self.root}/{name}: ") for name, error in sorted(lost.items())}

    def _walk(self, folder: str, found: dict[str, int], lost: dict[str, SourceError]) -> None:
        try:
            entries = list(os.scandir(os.path.join(self.root, folder)))
        except OSError as error:
            place = os.path.join(self.root, folder.rstrip("/"))
            lost[folder.rstrip("/")] = refusal(place, error, SourceError)
            if folder:
                return
            raise lost[""] from None
        for entry in entries:
            name = f"{folder}{entry.name}"
            if not name.isprintable():
                raise SourceError(f"{self.root}: file name {name!r} is not printable text", hint="rename the file")
            if entry.is_dir(follow_symlinks=False):
                # Version control and caches are not part of a checkpoint.
                if entry.name not in (".git", ".dsctl", ".cache", "__pycache__"):
                    self._walk(f"{name}/", found, lost)
            elif entry.is_symlink() or entry.is_file():
                try:
                    status = os.stat(self.path(name))
                except SourceError as error:
                    lost[name] = error
                except OSError as error:
                    lost[name] = _lost(entry, error)
                else:
                    if stat.S_ISREG(status.st_mode):
                        found[name] = status.st_size

    def path(self, file: str) -> str:
        """Where a file lies on disk.

        Raises:
            SourceError: the name is absolute, climbs out, or is a link that leads out of the folder (links from
                a hub cache's snapshot to its own blobs are allowed).
        """
        if not file or file.startswith("/") or "\\" in file or "\0" in file or ".." in file.split("/"):
            raise SourceError(f"{self.root}: file name {file!r} leads out of the folder")
        path = os.path.join(self.root, file)
        real = os.path.realpath(path)
        if not any(real.startswith(allowed + os.sep) for allowed in self._allowed()):
            raise SourceError(f"{path}: is a link out of the folder", hint="copy the file into the folder")
        return real

    def _allowed(self) -> tuple[str, ...]:
        root = Path(self.root)
        if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
            return self.root, str(root.parent.parent / "blobs")
        return (self.root,)

    @property
    def remote(self) -> bool:
        return False

    @property
    def revision(self) -> str:
        return ""

    def head(self, file: str, size: int) -> bytes:
        with self._opened(file) as descriptor:
            return read_head(lambda begin, end: self._bytes(descriptor, file, begin, end), file, size, FIRST_READ)

    def read(self, file: str, begin: int, end: int) -> bytes:
        with self._opened(file) as descriptor:
            return self._bytes(descriptor, file, begin, end)

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        with self._opened(file) as descriptor:
            at = 0
            while at < len(buffer):
                count = os.preadv(descriptor, [buffer[at:]], begin + at)
                if not count:
                    raise SourceError(f"{self.root}/{file}: file ends at byte {begin + at:,}, expected more")
                at += count

    @contextmanager
    def _opened(self, file: str) -> Iterator[int]:
        """Open the file for the block; the system's refusals become SourceErrors."""
        descriptor = None
        try:
            descriptor = self._open(file)
            yield descriptor
        except OSError as error:
            raise refusal(f"{self.root}/{file}", error, SourceError) from None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _open(self, file: str) -> int:
        # Without O_NONBLOCK, opening a pipe in the place of a file would wait for a writer forever.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        if _PARTING.isdisjoint(file) and file not in ("", ".", ".."):
            try:
                # A plain name that is not a link lies in the folder: its path needs no resolving.
                return os.open(os.path.join(self.root, file), flags | os.O_NOFOLLOW)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
        return os.open(self.path(file), flags)

    def _bytes(self, descriptor: int, file: str, begin: int, end: int) -> bytes:
        parts: list[bytes] = []
        while begin < end:
            parts.append(os.pread(descriptor, end - begin, begin))
            if not parts[-1]:
                raise SourceError(f"{self.root}/{file}: file ends at byte {begin:,}, expected more")
            begin += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _lost(entry: os.DirEntry[str], error: OSError) -> SourceError:
    """The error for a file that cannot be reached; for a broken link it has the link's target."""
    if not entry.is_symlink():
        return refusal(entry.path, error, SourceError)
    hint = "download the checkpoint again: the file behind a link in a hub's cache may have been deleted"
    return refusal(f"{entry.path}: is a link to {os.readlink(entry.path)}", error, SourceError, hint)
