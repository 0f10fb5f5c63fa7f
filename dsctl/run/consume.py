"""Delete source files once their converted data is on disk, and keep their headers so that a run can resume."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

from dsctl.checkpoint.reading import check_name
from dsctl.core.errors import FormatError, PlanError, ResumeError, SourceError, WorkError
from dsctl.core.files import alone_in, make_folders, read_own, refusal, replace_file, sync_folder
from dsctl.plan.plan import MISSING, Job, Plan, files_read
from dsctl.run.locks import refuse_busy
from dsctl.stores import WORKING, Store
from dsctl.stores.local import LocalFolder

# In the target, also when it is complete: without these notes the same command is not recognized. No store lists them.
NOTES = ".cache/dsctl"
_PREFIX = "consumed-"
# Jobs that may be running at once while the files of earlier ones still exist.
_SPARE_JOBS = 8


@dataclass(frozen=True, slots=True)
class Remembered:
    """A folder without its consumed weight files; their sizes and headers are served as if they existed."""

    store: LocalFolder
    gone: tuple[tuple[str, int, bytes], ...]

    @property
    def place(self) -> str:
        return self.store.place

    @property
    def remote(self) -> bool:
        return False

    @property
    def revision(self) -> str:
        return ""

    def files(self) -> dict[str, int]:
        return dict(sorted((self.store.files() | {name: size for name, size, _ in self.gone}).items()))

    def head(self, file: str, size: int) -> bytes:
        kept = next((head for name, _, head in self.gone if name == file), None)
        return self.store.head(file, size) if kept is None else kept

    def read(self, file: str, begin: int, end: int) -> bytes:
        self._refuse(file)
        return self.store.read(file, begin, end)

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        self._refuse(file)
        self.store.read_into(file, begin, buffer)

    def _refuse(self, file: str) -> None:
        if file in gone(self):
            raise SourceError(f"{self.place}/{file}: was deleted by --consume; its converted data is in the target")


def gone(store: Store) -> frozenset[str]:
    """The files of a store that were consumed."""
    return frozenset(name for name, _, _ in store.gone) if isinstance(store, Remembered) else frozenset()


def is_note(name: str) -> bool:
    """Whether a file of a working folder is the note on a consumed file."""
    return name.startswith(_PREFIX) and name.endswith(".json")


def consumed(target: Path) -> dict[str, tuple[int, bytes]]:
    """The size and the header of every file that runs to a target consumed, by name.

    Raises:
        ResumeError: a note cannot be read.
    """
    found: dict[str, tuple[int, bytes]] = {}
    for note in sorted((target / NOTES).glob(f"{_PREFIX}*.json")):
        try:
            said = json.loads(read_own(note))
            file, length, head = str(said["file"]), int(said["size"]), base64.b64decode(said["header"])
            check_name(file, str(note))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise ResumeError(f"{note}: the note on a consumed file cannot be read: {error}") from None
        except FormatError as error:
            raise ResumeError(error.message) from None
        found[file] = length, head
    return found


def remembered(store: Store, target: Path, force: bool) -> Store:
    """The store, including the files that a run to this target, interrupted or complete, consumed.

    Raises:
        ResumeError: `force` asks to start over, but consumed files are needed for it.
    """
    kept = consumed(target) if isinstance(store, LocalFolder) else {}
    if not kept or not isinstance(store, LocalFolder):
        return store
    there = store.files()
    lost = tuple((file, *one) for file, one in kept.items() if file not in there)
    if force and lost:
        what = f"holds the only data of {len(lost)} consumed files"
        raise ResumeError(f"{target}: {what}", hint="leave --force out")
    return Remembered(store, lost) if lost else store


def refuse_consumed_since(store: Store, target: Path) -> None:
    """Refuse a source if another run has consumed files of it since it was opened.

    Raises:
        ResumeError: files were consumed; the same command finds their notes when it is run again.
    """
    known = store.store if isinstance(store, Remembered) else store
    if isinstance(known, LocalFolder) and consumed(target).keys() - known.files().keys() - gone(store):
        what = "another run consumed files of the source in the meantime"
        raise ResumeError(f"{target}: {what}", hint="run the same command again, without --force")


@contextmanager
def beside_others(store: Store, target: Path) -> Iterator[None]:
    """Read a source without a lock; report if it vanishes because another run to this target consumes it.

    Raises:
        ResumeError: another run to the target is working, or has consumed files in the meantime.
    """
    try:
        yield
    except (SourceError, FormatError):
        refuse_busy(target / WORKING)
        refuse_consumed_since(store, target)
        raise


def refuse_link(source: str) -> None:
    """Refuse to consume a folder through a link.

    Raises:
        PlanError: it is a link.
    """
    if os.path.islink(source.rstrip("/")):
        raise PlanError(f"{source}: is a link, and --consume does not follow links", hint="name the folder itself")


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Hold a folder that is consumed alone: two such runs would each keep only a part of its data.

    Raises:
        ResumeError: another run consumes it.
    """
    with alone_in(Path(_folder(store).root)):
        yield


def _folder(store: Store) -> LocalFolder:
    folder = store.store if isinstance(store, Remembered) else store
    assert isinstance(folder, LocalFolder)
    return folder


def refuse_unsafe(plan: Plan, store: Store) -> None:
    """Refuse to consume files that do not belong to the folder alone, or data that the target will not hold.

    Raises:
        PlanError: a hub, a hub's cache, a single file, a file that is a link or has a second link, or a plan that
            leaves parameters or ranks out.
    """
    if plan.request.ranks:
        raise PlanError(f"{store.place}: the other ranks are left out, and --consume would lose them")
    lost = sum(item.why != MISSING for item in plan.dropped)
    if lost:
        raise PlanError(f"{store.place}: {lost:,} parameters are left out, and --consume would lose them")
    folder = store.store if isinstance(store, Remembered) else store
    if not isinstance(folder, LocalFolder) or folder.only:
        raise PlanError(f"{store.place}: --consume is for a folder on this machine")
    if any(one.startswith("models--") and two == "snapshots" for one, two in pairwise(Path(folder.root).parts)):
        what = "is in a hub's cache, which --consume does not touch"
        raise PlanError(f"{store.place}: {what}", hint="`hf cache` removes files from it")
    for file in folder.files():
        path = os.path.join(folder.root, file)
        if file.endswith(".safetensors") and (os.path.realpath(path) != path or os.stat(path).st_nlink > 1):
            raise PlanError(f"{path}: is a link or has a second link, and is not consumed")


def room(plan: Plan, store: Store, target: Path) -> int:
    """The most bytes of free disk that a consuming run takes at any time, plus a reserve of a few jobs.

    Deleted files make room only if source and target share a file system.

    Raises:
        SourceError: a source file is missing.
    """
    files, free = store.files(), gone(store)
    if os.stat(store.place).st_dev != os.stat(target).st_dev:
        return plan.bytes_out
    waiting: dict[str, int] = {}
    for job in plan.jobs:
        for file in files_read(job):
            waiting[file] = waiting.get(file, 0) + 1
    taken = most = 0
    if vanished := waiting.keys() - files.keys():
        raise SourceError(f"{store.place}/{min(vanished)}: has disappeared since the folder was opened")
    for job in plan.jobs:
        sources = files_read(job)
        taken += 0 if sources <= free else sum(step.written_bytes for step in job.steps)
        most = max(most, taken)
        for file in sources:
            waiting[file] -= 1
            taken -= files[file] if not waiting[file] and file not in free else 0
    spare = _SPARE_JOBS * max((sum(step.written_bytes for step in job.steps) for job in plan.jobs), default=0)
    return min(plan.bytes_out, most + spare)


class Consumer:
    """Counts the jobs that still need each source file, and deletes a file when no job needs it.

    `safe` is called before each deletion: it raises if the file is no longer the one that was read, or if the target
    no longer belongs to this run.
    """

    def __init__(
        self, store: Store, target: Path, jobs: Iterable[Job], done: Iterable[int], safe: Callable[[str], None]
    ) -> None:
        self._store, self._target, self._safe = store, target, safe
        notes = target / NOTES
        make_folders(notes)
        # An earlier run may have been killed after making these and before syncing them.
        for folder in (notes.parent, target):
            sync_folder(folder)
        finished = set(done)
        self._needs: dict[int, set[str]] = {job.number: files_read(job) for job in jobs}
        self._waiting: dict[str, set[int]] = {}
        for number, files in self._needs.items():
            for file in files - gone(store):
                self._waiting.setdefault(file, set()).add(number)
        for number in finished:
            self.done(number)

    def done(self, number: int) -> None:
        """Record that a job's bytes are on the disk and its receipt is in the journal.

        Raises:
            WorkError: a file cannot be removed.
        """
        for file in self._needs[number]:
            waiting = self._waiting.get(file)
            if waiting is None:
                continue
            waiting.discard(number)
            if not waiting:
                del self._waiting[file]
                self._remove(file)

    def _remove(self, file: str) -> None:
        folder = _folder(self._store)
        path = Path(folder.path(file))
        if not file.endswith(".safetensors"):
            return
        self._safe(file)
        size = path.stat().st_size
        note = {"file": file, "size": size, "header": base64.b64encode(folder.head(file, size)).decode()}
        name = f"{_PREFIX}{quote(file, safe='')}.json"
        replace_file(self._target / NOTES / name, json.dumps(note).encode())
        try:
            path.unlink()
            sync_folder(path.parent)
        except OSError as error:
            raise refusal(path, error, WorkError) from None
