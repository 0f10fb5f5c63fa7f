"""A lock on a folder: held by one living process, and released by the system when that process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from dsctl.core.errors import ResumeError, WorkError
from dsctl.core.files import failure, make_folders, open_own, refusal

LOCK = "lock"
# Attempts to take a lock that vanishes with the run that held it.
ATTEMPTS = 100


def _busy(place: str, owner: str) -> ResumeError:
    what = f"another dsctl is working here (process {owner})"
    return ResumeError(f"{place}: {what}", hint="wait until it ends, or choose another target")


def refuse_busy(folder: Path) -> None:
    """Refuse a folder whose lock a living process holds; no lock is made or taken.

    Raises:
        ResumeError: a process holds it.
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
    """A folder's lock: held by one living process, and released by the system when that process ends, for any reason.

    The folder is made if it is missing; `place` is the name of the locked thing for people.

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
        # The number is for people only, so a full disk is not a reason to stop.
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
        """Whether the locked file is still the one in the folder."""
        try:
            there, mine = os.lstat(self.path), os.fstat(self._descriptor)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def release(self) -> None:
        """Release the lock, and remove the folder if it holds nothing else."""
        try:
            if self.held() and os.listdir(self.path.parent) == [self.path.name]:
                self.path.unlink()
                self.path.parent.rmdir()
        except OSError:
            # Another run uses the folder, or its permissions forbid it: it may stay.
            pass
        finally:
            os.close(self._descriptor)
